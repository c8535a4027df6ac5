"""Text that nobody here wrote: 200 payloads as corpus text, ids, sources, names, errors and logs; none may run.

That the payloads would run where they could is shown first, on a page that puts them into its markup.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from curator.job_directory import JobDirectory, JobRecord, new_id, now

pytestmark = pytest.mark.slow

_DO = "window.executed=1"
_VECTORS = (
    "<script>{0}</script>", "<img src=x onerror={0}>", "<svg onload={0}>", "<svg><script>{0}</script></svg>",
    "<body onload={0}>", "<iframe srcdoc='<script>parent.{1}</script>'></iframe>",
    "<iframe src='javascript:parent.{1}'>",
    "<details open ontoggle={0}>", "<video><source onerror={0}></video>", "<input autofocus onfocus={0}>",
    "<a href='javascript:{0}' autofocus>x</a>", "<math><mtext><img src=x onerror={0}></mtext></math>",
    "<object data='javascript:{0}'></object>", "<style>@import 'javascript:{0}'</style><img src onerror={0}>",
    "<template><script>{0}</script></template><svg onload={0}>",
    "<noscript><p title='</noscript><img src=x onerror={0}>'>",
    "<form action='javascript:{0}'><button>x</button></form>", "<xmp><img src=x onerror={0}></xmp>",
    "<b hx-on:load='{0}' hx-get='/' hx-trigger=load>x</b>", "<img src=x onerror={0} hx-get=/keys>",
)  # fmt: skip
_FRAMES = (
    "{0}", "\">{0}", "'>{0}", "</textarea>{0}", "</title>{0}", "</script>{0}", "</pre></td>{0}", "--></style>{0}",
    "`${{{0}}}`", "{{{{ {0} }}}}",
)  # fmt: skip
PAYLOADS = [frame.format(vector.format(_DO, _DO.removeprefix("window."))) for frame in _FRAMES for vector in _VECTORS]
assert len(set(PAYLOADS)) == 200
_SHOWN_DOCUMENTS = 6


def test_the_payloads_run_where_they_can(chromium: Browser) -> None:
    page = chromium.new_page()
    ran = 0
    for payload in PAYLOADS[: len(_VECTORS)]:
        page.set_content(f"<p>{payload}</p>", wait_until="load")
        page.wait_for_timeout(20)
        ran += bool(page.evaluate("window.executed === 1"))
        page.goto("about:blank")
    page.close()
    assert ran >= 8


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a corpus lies whose every name and text is a payload; its file's name too."""
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "<img src=x onerror=window.executed=1>.jsonl"
    size = len(PAYLOADS) // _SHOWN_DOCUMENTS + 1
    texts = ["\n".join(PAYLOADS[start : start + size]) for start in range(0, len(PAYLOADS), size)]
    rows = [{"text": text, "id": PAYLOADS[-1 - n], "source": PAYLOADS[n]} for n, text in enumerate(texts)]
    rows += [{"text": f"{p} and more text", "id": f"{n} {p}", "source": p} for n, p in enumerate(PAYLOADS)]
    lines = [json.dumps(row) for row in rows] + [f'{{"text": {payload}' for payload in PAYLOADS[:20]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_failed_job(data_dir: Path, payload: str) -> str:
    """A job that carries a payload in its name, spec, stage, message, error and log."""
    job_id = new_id("job")
    spec = {
        "name": payload,
        "corpus": {"kind": payload, "uri": payload},
        "models": {payload: {"model": payload}},
        "policy": {"kind": payload},
    }
    record = JobRecord(
        id=job_id, kind="curate", tenant="default", name=payload, spec=spec, output=f"/{payload}", created_at=now()
    )  # fmt: skip
    directory = JobDirectory(data_dir / "jobs" / job_id)
    directory.create(record)
    stage = {"stage": payload, "shards": 1, "tokens": 10, "state": "started"}
    directory.append(1, "state", {"status": "validating"})
    directory.append(1, "stage", stage)
    progress = {
        "stage": payload,
        "stages": [stage],
        "shards_done": 0,
        "shards": 1,
        "tokens_done": 0,
        "tokens": 10,
        "workers": 1,
    }
    directory.append(1, "progress", progress | {"tokens_per_s": None, "eta_s": None})
    directory.append(1, "state", {"status": "failed", "error": {"type": payload, "message": payload}})
    directory.log_path.write_text("\n".join([payload, *PAYLOADS]) + "\n", encoding="utf-8")
    return job_id


def test_corpus_text_never_runs(start: Any, browse: Any, job_spec: Any, hostile: Path) -> None:
    service = start("--allow-root", str(hostile.parent))
    corpus = {"kind": "jsonl", "uri": str(hostile), "source_field": "source", "id_field": "id"}
    job = service.wait(service.submit(job_spec(name=PAYLOADS[0], corpus=corpus))["id"])
    assert job["status"] == "completed", job
    browser = browse(service, viewport={"width": 1280, "height": 900})
    page = browser.open(f"/jobs/{job['id']}/tokens", ".document [role=option]")
    shown = page.locator(".document [role=listbox]").evaluate_all(
        "nodes => nodes.map(node => node.textContent).join('\\n')"
    )
    assert all(payload in shown for payload in PAYLOADS)
    for token in page.locator(".document:first-of-type [role=option]").all()[:40]:
        token.hover()
    for select in ("Most kept", "Most dropped", "Near the cut"):
        page.get_by_role("radio", name=select).check(force=True)
        expect(page.locator("#map-state")).not_to_have_text("Loading…")
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    overview = browser.open(f"/jobs/{job['id']}", "#error-rows tr")
    expect(overview.locator("#error-rows tr")).to_have_count(20)
    expect(overview.locator("#scores-sources tbody tr").first).to_be_visible()
    overview.wait_for_timeout(500)


def test_names_errors_and_logs_never_run(tmp_path: Path, start: Any, browse: Any) -> None:
    data_dir = tmp_path / "data"
    ids = [make_failed_job(data_dir, payload) for payload in PAYLOADS]
    service = start(data_dir=data_dir)
    with service.client() as client:
        while len(client.get("/v1/jobs?limit=200").json()["data"]) < len(ids):
            pass
        for payload in PAYLOADS[:10]:
            body = {"name": payload, "tenant": "default", "scopes": ["read"]}
            assert client.post("/v1/keys", json=body).status_code == 201
    browser = browse(service)
    page = browser.open("/", "table.jobs")
    seen: list[str] = []
    while True:
        seen += page.locator("table.jobs tbody th a").all_inner_texts()
        older = page.get_by_role("link", name="Older jobs")
        if not older.count():
            break
        older.click()
        page.wait_for_load_state()
    assert sorted(map(_squeeze, seen)) == sorted(map(_squeeze, PAYLOADS))
    for job_id, payload in list(zip(ids, PAYLOADS, strict=True))[::5]:
        page.goto(f"{service.url}/jobs/{job_id}")
        expect(page.locator(".notice.error pre")).to_have_text(payload)
        assert PAYLOADS[-1] in page.locator("#log").inner_text()
        browser.check()
    keys = browser.open("/keys", "#key-rows tr")
    expect(keys.locator("#key-rows")).to_contain_text(PAYLOADS[9])
    page.goto(f"{service.url}/?name={PAYLOADS[1]}&status={PAYLOADS[1]}&kind={PAYLOADS[1]}")
    expect(page.get_by_label("Name holds")).to_have_value(PAYLOADS[1])
    page.goto(f"{service.url}/jobs/{PAYLOADS[1].replace('/', '')}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")


def _squeeze(text: str) -> str:
    return " ".join(text.split())
