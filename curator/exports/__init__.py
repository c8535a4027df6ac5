"""Forms in which trainers read a curated dataset: one file each, and one line each in `ExportConfig`.

A form lays out items that it is given (see `curator.exports.form`); reading, order, packing and publishing are
`curator.export`'s. What the forms share is in `columns.py`; they never import each other.
"""

from typing import Annotated

from pydantic import Field

from curator.exports.axolotl import AxolotlForm
from curator.exports.hugging_face import HuggingFaceForm
from curator.exports.llama_factory import LlamaFactoryForm
from curator.exports.megatron import MegatronForm
from curator.exports.mosaicml import MosaicMLForm
from curator.exports.ms_swift import MsSwiftForm
from curator.exports.nanotron import NanotronForm
from curator.exports.nemo import NemoForm
from curator.exports.olmo_core import OlmoCoreForm
from curator.exports.tinker import TinkerForm
from curator.exports.torchtitan import TorchtitanForm
from curator.exports.torchtune import TorchtuneForm
from curator.exports.trl import TRLForm

ExportConfig = Annotated[
    AxolotlForm
    | HuggingFaceForm
    | LlamaFactoryForm
    | MegatronForm
    | MosaicMLForm
    | MsSwiftForm
    | NanotronForm
    | NemoForm
    | OlmoCoreForm
    | TinkerForm
    | TorchtitanForm
    | TorchtuneForm
    | TRLForm,
    Field(discriminator="kind"),
]  # fmt: skip
