"""Whether a tenant may have this spec run: what it reads, writes and calls must be allowed by the settings.

    body     the request's bytes as a JSON object, with limits that hold before anything is parsed
    fields   every text of a spec, with what it means: a place, a model, a host, or mere text
    places   folders and object stores
    models   models, tokenizers, data sets of the hub, arguments of engines
    hosts    servers that engine openai calls
    specs    the whole answer: `admit`

Invariant: a text whose meaning is not known is refused, so that a new field of a config cannot open a door by itself.
"""

from service.admission.body import read_json_body
from service.admission.places import overlaps
from service.admission.specs import AdmittedSpec, admit

__all__ = ["AdmittedSpec", "admit", "overlaps", "read_json_body"]
