// One document as a map of tokens: elements once, then only class names change.
//
// Text of a corpus enters the page as text nodes alone. Kept tokens are underlined, dropped ones struck out, unscored
// ones dotted: colour only adds to that. A document is a listbox of tokens, of which the kept ones are selected.
import { element } from "/static/app.js";
import { signed } from "/static/charts.js";

const EDGES = [0.08, 0.25, 0.5, 0.85]; // as LEVEL_EDGES of the report's heat map
const LEVELS = ["", "p1", "p2", "p3", "p4", "p5", "n1", "n2", "n3", "n4", "n5", "q1", "q2", "q3", "q4", "q5"];
const UP = 0, DOWN = 5, AMOUNT = 10;

const PLAIN = /^[\w .,:;()\-]*$/;
const BIDI = "\u202a-\u202e\u2066-\u2069";
const INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028\u2029\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0";
const MARKED = new RegExp(`[\t\r\n${INVISIBLE}${BIDI}]|[\u{e0000}-\u{e007f}]`, "gu");
const IS_BIDI = new RegExp(`[${BIDI}]`);
const JOINING = /^[\u200c\u200d\ufe00-\ufe0f]+$/;
const CONTROLS = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]/g;
const MARKS = { "\n": "lf", "\t": "tab", "\r": "cr" };

/** Control characters as pictures, as in visible_text.py. */
const asShown = (text) => text.replace(CONTROLS, (found) => {
  const code = found.charCodeAt(0);
  return String.fromCharCode(code < 0x20 ? 0x2400 + code : code === 0x7f ? 0x2421 : 0x2426);
});

/** Put a token's text into an element; what cannot be seen gets a mark. */
function putText(node, text) {
  if (PLAIN.test(text)) {
    node.textContent = text;
    return;
  }
  const shown = asShown(text);
  if (JOINING.test(shown)) node.append(element("i", { className: "inv" }));
  let last = 0;
  for (const match of shown.matchAll(MARKED)) {
    node.append(shown.slice(last, match.index), element("i", { className: MARKS[match[0]] ?? "inv" }));
    // A direction mark acts until its paragraph ends: isolated, it cannot reorder what follows.
    node.append(IS_BIDI.test(match[0]) ? element("i", { className: "iso", text: match[0] }) : match[0]);
    last = match.index + match[0].length;
  }
  node.append(shown.slice(last));
}

/** A token's text in one line, for the readout. */
const quote = (text) => asShown(text).replaceAll("\n", "⏎").replaceAll("\r", "␍").replaceAll("\t", "→").replaceAll(" ", "·") || "(no text)";

const levelOf = (part) => 1 + EDGES.filter((edge) => part >= edge).length;

/** What a layer's colours mean: around a centre, or from 0 up. */
export function describeLayer(name, scale, policy) {
  const isScore = name === "score" || (name === "excess" && policy.kind === "excess_loss");
  if (isScore) return { diverging: true, centre: scale.centre, spread: scale.spread, low: "below the cut", high: "above" };
  if (name === "excess") return { diverging: true, centre: 0, spread: Math.max(scale.loss_max / 2, 1), low: "reference is worse", high: "base is worse" };
  const most = name === "weight" ? scale.weight_max : scale.loss_max;
  return { diverging: false, most, low: "0", high: name === "weight" ? most.toFixed(2) : `${most.toFixed(1)} nats` };
}

function levelsOf(values, layer) {
  return Uint8Array.from(values, (value) => {
    if (value === null) return 0;
    if (layer.diverging) return (value >= layer.centre ? UP : DOWN) + levelOf(Math.abs(value - layer.centre) / layer.spread);
    return value > 0 ? AMOUNT + levelOf(value / layer.most) : 0;
  });
}

/** The tokens of one document. */
export class TokenMap {
  constructor(facts, layers, onShow) {
    this.facts = facts;
    this.onShow = onShow;
    this.cut = facts.cut; // what tokens are marked by now
    const sizes = facts.groups ?? facts.tokens.map(() => 1);
    this.firsts = [];
    sizes.reduce((next, size) => (this.firsts.push(next), next + size), 0);
    this.sizes = sizes;
    // What several tokens share is shown once: the token of the highest weight, then score, decides how it looks.
    this.strongest = this.firsts.map((first, i) => this.strongestOf(first, sizes[i]));
    this.scores = Float32Array.from(this.strongest, (t) => facts.layers.score?.[t] ?? NaN);
    this.state = this.strongest.map((t) => this.stateOf(t));
    this.byScore = Array.from(this.scores.keys()).filter((i) => !Number.isNaN(this.scores[i])).sort((a, b) => this.scores[a] - this.scores[b]);
    this.levels = new Map();
    for (const [name, layer] of layers) {
      const values = name === "weight" ? facts.weights : facts.layers[name];
      this.levels.set(name, values ? levelsOf(this.strongest.map((t) => values[t]), layer) : new Uint8Array(sizes.length));
    }
    this.layer = layers.keys().next().value;
    this.current = 0;
    this.build();
  }

  strongestOf(first, size) {
    const score = this.facts.layers.score;
    let best = first;
    for (let t = first + 1; t < first + size; t += 1) {
      const more = this.facts.weights[t] - this.facts.weights[best];
      if (more > 0 || (more === 0 && (score?.[t] ?? -Infinity) > (score?.[best] ?? -Infinity))) best = t;
    }
    return best;
  }

  stateOf(t) {
    if (this.facts.weights[t] > 0) return "k";
    const scored = Object.values(this.facts.layers).some((values) => values[t] !== null);
    return scored ? "d" : "u";
  }

  build() {
    this.box = element("div", { className: "tokens", role: "listbox", "aria-multiselectable": "true", "aria-readonly": "true", "aria-orientation": "horizontal", dir: "auto" });
    const template = document.createElement("span");
    template.setAttribute("role", "option");
    template.tabIndex = -1;
    this.elements = this.firsts.map((first, i) => {
      const node = template.cloneNode(false);
      const text = this.facts.tokens[first];
      putText(node, text);
      if (text === "") node.setAttribute("aria-label", "special token");
      node.className = this.classOf(i);
      if (this.state[i] !== "u") node.setAttribute("aria-selected", this.state[i] === "k" ? "true" : "false");
      return node;
    });
    if (this.elements.length) this.elements[0].tabIndex = 0;
    this.numbers = new Map(this.elements.map((node, i) => [node, i]));
    this.box.append(...this.elements);
    this.box.addEventListener("keydown", (event) => this.move(event));
    this.box.addEventListener("focusin", (event) => this.show(this.numberOf(event.target)));
    this.box.addEventListener("focusout", () => this.onShow(null));
    this.box.addEventListener("pointerover", (event) => event.target !== this.box && this.show(this.numberOf(event.target)));
    this.box.addEventListener("pointerleave", () => !this.box.contains(document.activeElement) && this.onShow(null));
  }

  numberOf(target) {
    return this.numbers.get(target.closest(".tokens > span"));
  }

  classOf(i) {
    const special = this.facts.tokens[this.firsts[i]] === "" ? " sp" : "";
    return `${this.state[i]} ${LEVELS[this.levels.get(this.layer)[i]]}${special}`;
  }

  paint(layer) {
    this.layer = layer;
    for (let i = 0; i < this.elements.length; i += 1) this.elements[i].className = this.classOf(i);
  }

  /** Mark tokens by a cut of their scores; null: as the job decided. Only those that change are touched. */
  cutAt(score) {
    this.cut = score ?? this.facts.cut;
    if (score === null) {
      for (const i of this.byScore) this.mark(i, this.facts.weights[this.strongest[i]] > 0 ? "k" : "d");
      return;
    }
    for (const i of this.byScore) this.mark(i, this.scores[i] >= score ? "k" : "d");
  }

  mark(i, state) {
    if (this.state[i] === state) return;
    this.state[i] = state;
    this.elements[i].className = this.classOf(i);
    this.elements[i].setAttribute("aria-selected", state === "k" ? "true" : "false");
  }

  /** Scored and kept tokens among those shown, as marked now. */
  shown() {
    const kept = this.state.filter((state) => state === "k").length;
    return { kept, scored: this.state.filter((state) => state !== "u").length };
  }

  show(i) {
    if (i === undefined) return;
    const parts = [];
    for (let t = this.firsts[i]; t < this.firsts[i] + this.sizes[i]; t += 1) parts.push(this.describe(t));
    this.onShow({ text: quote(this.facts.tokens[this.firsts[i]]), state: this.state[i], parts });
    if (document.activeElement === this.elements[i]) this.elements[i].setAttribute("aria-describedby", "readout");
  }

  describe(t) {
    const { weights, layers } = this.facts;
    const facts = [["token", String(t)], ["weight in the job", weights[t].toFixed(3)]];
    for (const name of this.levels.keys()) {
      if (!layers[name]) continue; // the weight
      const value = layers[name][t];
      if (name === "score" || name === "excess") facts.push([name, signed(value)]);
      else facts.push([`${name.slice("loss_".length)} loss`, value === null ? "–" : value.toFixed(3)]);
      if (name === "score" && value !== null && this.cut !== null) facts.push(["from the cut", signed(value - this.cut)]);
    }
    return facts;
  }

  move(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.elements.length - 1;
    const at = this.numberOf(event.target) ?? this.current;
    const steps = {
      ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => last,
      ArrowDown: () => this.vertical(at, 1), ArrowUp: () => this.vertical(at, -1), PageDown: () => at + 100, PageUp: () => at - 100,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.elements[this.current].tabIndex = -1;
    this.elements[at].removeAttribute("aria-describedby");
    this.current = Math.min(Math.max(steps[event.key](), 0), last);
    this.elements[this.current].tabIndex = 0;
    this.elements[this.current].focus();
  }

  /** The token nearest to the same place in the line below or above. */
  vertical(at, direction) {
    const here = this.elements[at].getClientRects()[0];
    let best = at, distance = Infinity, line = null;
    for (let i = at + direction; i >= 0 && i < this.elements.length; i += direction) {
      const there = this.elements[i].getClientRects()[0];
      if (!there || Math.abs(there.top - here.top) < here.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) > here.height / 2) break;
      if (Math.abs(there.left - here.left) < distance) [best, distance] = [i, Math.abs(there.left - here.left)];
    }
    return best;
  }
}
