// Times in ms, with layout, of drawing 2,000 tokens, changing the layer and moving the cut.
async () => {
  const { TokenMap, describeLayer } = await import("/static/map.js");
  const words = ["the", " model", ":", "\n", " naïve", "\t", " 東京", "<b>", "ing", " of"];
  const tokens = Array.from({ length: 2000 }, (_, t) => words[(t * 7) % words.length]);
  const wave = (scale) => tokens.map((_, t) => (t ? scale * Math.sin(t * 1.7) : null));
  const facts = { tokens, groups: null, weights: wave(1).map((v) => (v > 0 ? 1 : 0)), cut: 0, layers: { score: wave(3), loss_base: wave(5), loss_reference: wave(4) } };
  const scale = { centre: 0, spread: 3, loss_max: 5, weight_max: 1 };
  const layers = new Map(["score", "loss_base", "loss_reference", "weight"].map((name) => [name, describeLayer(name, scale, {})]));
  const article = document.createElement("article");
  article.className = "document";
  document.getElementById("documents").replaceChildren(article);
  const times = { draw: [], layer: [], cut: [] };
  for (let run = 0; run < 5; run += 1) {
    article.replaceChildren();
    article.offsetHeight;
    let start = performance.now();
    const map = new TokenMap(facts, layers, () => {});
    article.append(map.box);
    article.offsetHeight;
    times.draw.push(performance.now() - start);
    for (const name of ["loss_base", "weight", "loss_reference"]) {
      start = performance.now();
      map.paint(name);
      article.offsetHeight;
      times.layer.push(performance.now() - start);
    }
    start = performance.now();
    map.cutAt(-1 + run / 2);
    article.offsetHeight;
    times.cut.push(performance.now() - start);
  }
  return times;
}
