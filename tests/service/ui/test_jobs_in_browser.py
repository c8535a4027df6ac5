"""Sign in, submit by the form, watch the job to its end, act on it."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
JOB_MS = 120_000


def test_a_wrong_key_is_refused_and_says_so(shared: Any, browse: Any) -> None:
    page = browse(shared, signed_in=False).open("/login")
    page.get_by_label("API key").fill("tc_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    assert page.context.cookies() == []


def test_pages_lead_to_login_and_back(shared: Any, browse: Any, finished: dict[str, Any]) -> None:
    browser = browse(shared, signed_in=False)
    page = browser.open(f"/jobs/{finished['id']}")
    assert "/login" in page.url
    page.get_by_label("API key").fill(shared.key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{shared.url}/jobs/{finished['id']}")
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("curator_session", True, "Strict")


def test_signing_out_ends_the_session(shared: Any, browse: Any) -> None:
    page = browse(shared).open("/")
    (cookie,) = page.context.cookies()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    page.context.add_cookies([cookie])
    page.goto(shared.url)
    assert "/login" in page.url


def test_login_leads_nowhere_else(shared: Any, browse: Any) -> None:
    for target in ("//example.org", "https://example.org", "/\\example.org", "javascript:alert(1)"):
        page = browse(shared, signed_in=False).open(f"/login?next={target}")
        page.get_by_label("API key").fill(shared.key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(shared.url + "/")


def test_a_spec_is_checked_as_it_is_typed(shared: Any, browse: Any, job_spec: Any) -> None:
    page = browse(shared).open("/")
    verdict = page.locator("#verdict")
    page.get_by_label("Spec").fill(json.dumps(job_spec(polcy=1)))
    expect(verdict).to_contain_text("polcy")
    page.get_by_label("Spec").fill("name: [")
    expect(verdict).to_contain_text("line 1")
    page.get_by_label("Spec").fill(json.dumps(job_spec(name="typed")))
    expect(verdict).to_contain_text("“typed” is valid")
    page.get_by_role("button", name="Estimate").click()
    expect(verdict).to_contain_text("Shards", timeout=60_000)
    expect(verdict).to_contain_text("free")


def test_submit_and_watch_to_the_end(shared: Any, browse: Any, job_spec: Any) -> None:
    page = browse(shared).open("/")
    corpus = job_spec()["corpus"]["uri"]
    page.get_by_label("Spec").fill(
        f"name: by form\ncorpus: {{kind: jsonl, uri: {corpus}, source_field: source, id_field: id}}\n"
        "models:\n  reference: {engine: bigram}  # a comment\n  base: {engine: bigram, model: unigram}\n"
        "policy: {kind: excess_loss, keep: 0.5}\nshard_tokens: 30000\n"
    )
    page.get_by_role("button", name="Submit job").click()
    page.wait_for_url("**/jobs/job_*")
    expect(page.get_by_role("heading", level=1)).to_have_text("by form")
    # no reload: the state comes through the stream
    page.evaluate("window.sameDocument = true")
    expect(page.locator("#job-head .badge")).to_have_text("Completed", timeout=JOB_MS)
    assert page.evaluate("window.sameDocument")
    expect(page.locator("#said")).to_have_text("The job is completed.")
    expect(page.locator(".timeline li")).to_have_text(
        [*map(_begins, ("Queued", "Validating", "In progress", "Finalizing", "Completed"))]
    )
    expect(page.locator(".figures .lead dd span")).to_have_text("50.0%")
    expect(page.locator(".funnel").get_by_role("row", name="kept")).to_contain_text("50.0%")
    expect(page.locator("#log")).to_contain_text("publish: done")
    job = shared.wait(page.url.rsplit("/", 1)[1])
    with shared.client() as client:
        shards = client.get(f"/v1/jobs/{job['id']}/shards").json()["data"]
    expect(page.locator("#shard-rows tr")).to_have_count(10)
    page.get_by_role("button", name="More shards").click()
    expect(page.locator("#shard-rows tr")).to_have_count(len(shards))
    expect(page.locator("#shard-rows .digest").first).to_have_text(shards[0]["sha256"])
    expect(page.locator("#shards pre").first).to_have_text(f"curator download {job['id']} --server {shared.url}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download shard 0", exact=True).click()
    assert Path(download.value.path()).stat().st_size == shards[0]["bytes"]


def _begins(word: str) -> Any:
    import re

    return re.compile(f"^{word}")


def test_an_upload_becomes_the_corpus(shared: Any, browse: Any, service_corpus: Path) -> None:
    page = browse(shared).open("/")
    page.get_by_label("Upload a corpus").set_input_files(service_corpus)
    expect(page.locator("#upload-state")).to_contain_text("is now corpus.uri")
    spec = page.get_by_label("Spec").input_value()
    assert "upload://upl_" in spec and "PATH" not in spec
    expect(page.locator("#verdict")).to_contain_text("is valid")


def test_cancel_resume_and_delete(start: Any, browse: Any, job_spec: Any) -> None:
    service = start(CURATOR_MAX_RUNNING_JOBS="0")  # the job waits
    job = service.submit(job_spec(name="waits"))
    page = browse(service).open(f"/jobs/{job['id']}")
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    expect(page.locator("#job-head .badge")).to_have_text("Queued")
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(page.locator("#job-head .badge")).to_have_text("Cancelled")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#job-head .badge")).to_have_text("Queued")
    expect(page.locator("#job-head")).to_contain_text("attempt 2")
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete job").click()
    page.wait_for_url(service.url + "/")
    expect(page.locator("#jobs")).to_contain_text("No job yet")


def test_the_list_filters_and_follows(start: Any, browse: Any, job_spec: Any) -> None:
    service = start(CURATOR_MAX_RUNNING_JOBS="0")
    for name in ("alpha", "beta", "beta two"):
        service.submit(job_spec(name=name))
    page = browse(service).open("/", "table.jobs")
    rows = page.locator("table.jobs tbody tr")
    expect(rows).to_have_count(3)
    page.get_by_label("Name holds").fill("beta")
    expect(rows).to_have_count(2)
    assert "name=beta" in page.url
    service.submit(job_spec(name="beta three"))
    expect(rows).to_have_count(3, timeout=10_000)  # by itself, and still filtered
    page.get_by_label("Status").select_option("completed")
    expect(page.locator("#jobs")).to_contain_text("No job matches")


def test_other_tenants_jobs_do_not_exist(shared: Any, browse: Any, finished: dict[str, Any]) -> None:
    page = browse(shared, key=shared.new_key("others")).open("/")
    expect(page.locator("#jobs")).to_contain_text("No job yet")
    for path in (f"/jobs/{finished['id']}", f"/jobs/{finished['id']}/tokens", "/jobs/job_none", "/keys"):
        answer = page.goto(shared.url + path)
        assert answer is not None and answer.status == 404
        expect(page.get_by_role("heading", level=1)).to_have_text("Not found")


def test_a_reader_sees_no_way_to_change_anything(shared: Any, browse: Any, finished: dict[str, Any]) -> None:
    reading = browse(shared, key=shared.new_key("default", "read"))
    assert reading.open("/").get_by_role("button", name="Submit job").count() == 0
    assert reading.open(f"/jobs/{finished['id']}").get_by_role("button", name="Delete").count() == 0


def test_keys_are_made_and_revoked(shared: Any, browse: Any) -> None:
    page = browse(shared).open("/keys")
    page.get_by_label("Name").fill("from the browser")
    page.get_by_role("button", name="Create key").click()
    expect(page.locator("#once-key")).to_contain_text("tc_")
    key = page.locator("#once-key").inner_text()
    with shared.client(key) as client:
        assert client.get("/v1/me").status_code == 200
        page.get_by_role("button", name="Revoke from the browser").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke key").click()
        expect(page.get_by_role("row", name="from the browser")).to_contain_text("revoked")
        assert client.get("/v1/me").status_code == 401
