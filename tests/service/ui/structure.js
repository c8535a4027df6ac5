// Missing names, references that lead nowhere, heading levels, targets that are too small, inline styles.
() => {
  const faults = [];
  const seen = (node) => node.checkVisibility();
  const named = (node) => node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim() || node.title
    || (node.getAttribute("aria-labelledby") ?? "").split(" ").some((id) => document.getElementById(id)?.textContent.trim());
  for (const node of document.querySelectorAll("a, button, input, select, textarea, [role=img], [role=listbox], [role=log], table, nav, section, aside, dialog")) {
    if (!seen(node) || node.type === "hidden") continue;
    const ok = node.tagName === "TABLE" ? node.querySelector("th[scope]") : named(node);
    if (!ok) faults.push(`no name: ${node.outerHTML.slice(0, 120)}`);
  }
  for (const attribute of ["aria-labelledby", "aria-describedby", "for", "aria-controls"]) {
    for (const node of document.querySelectorAll(`[${attribute}]`)) {
      for (const id of node.getAttribute(attribute).split(" ")) if (!document.getElementById(id)) faults.push(`${attribute}=${id} leads nowhere`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) faults.push(`id ${id} is used twice`);
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen).map((node) => Number(node.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) faults.push("not one h1");
  levels.forEach((level, i) => i && level > levels[i - 1] + 1 && faults.push(`heading ${level} after ${levels[i - 1]}`));
  if (!document.documentElement.lang || !document.title) faults.push("no language or title");
  if (document.querySelectorAll("main").length !== 1) faults.push("not one main");
  for (const node of document.querySelectorAll("[tabindex]")) if (node.tabIndex > 0) faults.push("a positive tabindex");
  for (const node of document.querySelectorAll("[style], [onclick]")) faults.push(`inline: ${node.outerHTML.slice(0, 80)}`);
  for (const node of document.querySelectorAll("button, .button, select, input:not([type=checkbox], .segments input)")) {
    const { width, height } = node.getBoundingClientRect();
    if (seen(node) && width && (width < 24 || height < 24)) faults.push(`small target: ${node.outerHTML.slice(0, 80)}`);
  }
  return faults;
}
