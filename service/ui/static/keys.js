// Keys of the service, for administrators.
import { api, byId, confirmed, element, fillPaged, say } from "/static/app.js";

const day = (value) => (value == null ? "–" : new Date(typeof value === "number" ? 1000 * value : value).toLocaleDateString(undefined, { dateStyle: "medium" }));

function makeRow(key) {
  const button = element("button", { type: "button", className: "copy", text: "Revoke", "aria-label": `Revoke ${key.name}` });
  const row = element("tr", {},
    element("th", { scope: "row", text: key.name, dir: "auto" }), element("td", { text: key.tenant }), element("td", { text: key.scopes.join(", ") }),
    element("td", { className: "wide-only", text: day(key.created_at) }), element("td", { className: "wide-only", text: key.expires_at ? day(key.expires_at) : "never" }),
    element("td", { className: "tight" }, key.revoked_at ? "revoked" : button));
  button.addEventListener("click", async () => {
    if (!(await confirmed(`Revoke “${key.name}”?`, "Whoever uses it is locked out at once, and its browsers are signed out.", "Revoke key"))) return;
    try {
      await api(`/v1/keys/${encodeURIComponent(key.id)}`, { method: "DELETE" });
      button.replaceWith("revoked");
      say("Key revoked");
    } catch (error) {
      say(error.message);
    }
  });
  return row;
}

const list = () => {
  byId("key-rows").replaceChildren();
  return fillPaged({ path: "/v1/keys", rows: byId("key-rows"), more: byId("keys-more"), row: makeRow });
};
list().catch((error) => say(error.message));

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const scopes = [...document.querySelectorAll('input[name="scope"]:checked')].map((input) => input.value);
  try {
    const made = await api("/v1/keys", { method: "POST", json: { name: byId("key-name").value, tenant: byId("key-tenant").value, scopes } });
    byId("once-key").textContent = made.key;
    byId("once-copy").dataset.copy = made.key;
    byId("once").hidden = false;
    await list();
  } catch (error) {
    say(error.message);
  }
});
