// Layers and numbers of the token maps. Without it the score layer stays as the server drew it.
"use strict";
(() => {
  const EDGES = [0.08, 0.25, 0.5, 0.85]; // as LEVEL_EDGES in heatmap.py
  document.documentElement.classList.add("script");

  const levelOf = (part) => 1 + EDGES.filter((edge) => part >= edge).length;
  const number = (value) => (value === null ? "–" : value.toFixed(3));
  const signed = (value) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3));

  const panel = document.createElement("output");
  panel.className = "panel";
  panel.hidden = true;
  document.body.append(panel);

  const readMap = (heat) => {
    const facts = JSON.parse(heat.dataset.facts);
    const box = heat.querySelector(".tokens");
    const elements = [...box.children];
    const sizes = facts.groups || elements.map(() => 1);
    let next = 0;
    const firsts = sizes.map((size) => (next += size) - size);
    const ranked = facts.score.filter((score) => score !== null).sort((a, b) => b - a);
    const map = { facts, box, elements, sizes, firsts, ranked, drawn: elements.map((e) => e.className), on: -1 };
    box.tabIndex = 0;
    box.addEventListener("pointerover", (event) => show(map, elements.indexOf(event.target.closest(".tokens > *"))));
    box.addEventListener("click", (event) => show(map, elements.indexOf(event.target.closest(".tokens > *"))));
    box.addEventListener("keydown", (event) => move(map, event));
    box.addEventListener("focus", () => box.matches(":focus-visible") && show(map, Math.max(map.on, 0)));
    box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    box.addEventListener("blur", hide);
    return map;
  };

  const hide = () => {
    panel.hidden = true;
    for (const element of document.querySelectorAll(".tokens .on")) element.classList.remove("on");
  };

  const pair = (name, value) => {
    const item = document.createElement("span");
    const label = document.createElement("small");
    label.textContent = name;
    item.append(label, value);
    return item;
  };

  const named = (map, index) => {
    const text = map.elements[index].textContent.replace(/\n/g, "⏎").replace(/\r/g, "␍").replace(/\t/g, "→").replace(/ /g, "·");
    const quote = document.createElement("bdi");
    quote.className = "quote";
    quote.textContent = text || "(no text)";
    return quote;
  };

  const show = (map, index) => {
    if (index < 0) return;
    hide();
    map.on = index;
    map.elements[index].classList.add("on");
    panel.textContent = "";
    panel.hidden = false;
    const { facts } = map;
    for (let part = 0; part < map.sizes[index]; part += 1) {
      const t = map.firsts[index] + part;
      const score = facts.score[t];
      const line = document.createElement("div");
      if (part === 0) line.append(named(map, index));
      else line.append(pair("", "same character"));
      line.append(pair("token", String(facts.first + t)));
      line.append(pair(facts.weight[t] > 0 ? "kept, weight" : score === null ? "no score, weight" : "dropped, weight", number(facts.weight[t])));
      if (score !== null) {
        line.append(pair("score", signed(score)));
        if (facts.cut !== null) line.append(pair("from cut", signed(score - facts.cut)));
        line.append(pair("rank here", `${map.ranked.indexOf(score) + 1} of ${map.ranked.length}`));
      }
      for (const [model, losses] of Object.entries(facts.loss)) line.append(pair(`loss ${model}`, losses[t] === null ? "–" : `${number(losses[t])} nats`));
      panel.append(line);
    }
  };

  const move = (map, event) => {
    if (event.key === "Escape") hide();
    const last = map.elements.length - 1;
    const steps = { ArrowRight: map.on + 1, ArrowLeft: map.on - 1, Home: 0, End: last };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    show(map, Math.min(Math.max(steps[event.key], 0), last));
    map.elements[map.on].scrollIntoView({ block: "nearest" });
  };

  const paint = (map, layer) => {
    const [kind, model] = layer.split(/:(.*)/);
    const values = kind === "loss" ? map.facts.loss[model] : map.facts.weight;
    const most = kind === "loss" ? map.facts.lossMax : map.facts.weightMax;
    map.elements.forEach((element, index) => {
      const own = values ? values.slice(map.firsts[index], map.firsts[index] + map.sizes[index]).filter((v) => v !== null) : [];
      const level = own.length && Math.max(...own) > 0 ? `q${levelOf(Math.max(...own) / most)}` : "";
      const special = map.drawn[index].split(" ").includes("sp") ? " sp" : "";
      element.className = kind === "score" ? map.drawn[index] : level + special;
    });
  };

  const maps = [...document.querySelectorAll(".heat")].map(readMap);
  for (const input of document.querySelectorAll('input[name="layer"]')) {
    input.addEventListener("change", () => {
      document.documentElement.dataset.layer = input.value === "score" ? "score" : "amount";
      maps.forEach((map) => paint(map, input.value));
    });
    if (input.value === "score") input.checked = true;
  }
})();
