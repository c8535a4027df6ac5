"""What a cluster may grow to, as its head's environment tells."""

import pytest

from curator.errors import ClusterError
from curator.room import GROWS_TO, Workers, count_workers, grows_to


@pytest.mark.parametrize(
    ("text", "told"),
    [("", {}), ('{"CPU": 40}', {"CPU": 40.0}), ('{"CPU": 40, "GPU": 8}', {"CPU": 40.0, "GPU": 8.0})],
)
def test_an_autoscaled_cluster_counts_with_all_that_it_may_have(
    text: str, told: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GROWS_TO, text)
    assert grows_to() == told
    if told:
        assert count_workers(Workers(cpus=4), 100, {"CPU": 0, **grows_to()}) == 10


@pytest.mark.parametrize("text", ["40", "[1]", '{"CPU": "many"}', "{"])
def test_nonsense_is_refused_by_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GROWS_TO, text)
    with pytest.raises(ClusterError, match=GROWS_TO) as caught:
        grows_to()
    assert text in str(caught.value)
