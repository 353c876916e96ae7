"""Style and script of report.html, inside the page so that it opens anywhere."""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2328; --dim: #656d76; --line: #d8dee4; --paper: #ffffff; --ground: #f6f8fa;
  --accent: #3b6fb6; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4.5rem; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
header { position: sticky; top: 0; z-index: 1; background: var(--paper);
  border-bottom: 1px solid var(--line); }
header div { max-width: 1120px; margin: 0 auto; padding: .7rem 1.5rem; display: flex;
  flex-wrap: wrap; gap: .3rem 2rem; align-items: baseline; justify-content: space-between; }
h1 { font-size: 1.15rem; margin: 0; }
h1 span { font-weight: 400; color: var(--dim); margin-left: .5rem; }
nav a { color: var(--accent); text-decoration: none; margin-left: 1.1rem; font-size: .9rem;
  white-space: nowrap; }
nav a:first-child { margin-left: 0; }
nav a:hover { text-decoration: underline; }
main { max-width: 1120px; margin: 0 auto; padding: 0 1.5rem 4rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0 0 .6rem; }
.note { color: var(--dim); font-size: .85rem; margin: .5rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--paper);
  border: 1px solid var(--line); }
th { text-align: left; font-size: .82rem; color: var(--dim); font-weight: 600;
  border-bottom: 1px solid var(--line); vertical-align: bottom; }
th, td { padding: .5rem .8rem; }
tbody tr + tr td { border-top: 1px solid #eaeef2; }
.figures td, .figures th { text-align: right; font-variant-numeric: tabular-nums; }
.figures td { white-space: nowrap; }
.figures td:first-child, .figures th:first-child { text-align: left; }
.texts td:first-child { width: 7rem; white-space: nowrap; }
.texts td:last-child { width: 5rem; text-align: right; font-variant-numeric: tabular-nums; }
.texts th:last-child { text-align: right; }
.texts td { vertical-align: top; overflow-wrap: anywhere; }
.cards { display: grid; gap: .8rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(185px, 1fr)); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; }
.card b { display: block; font-weight: 600; }
.card span { color: var(--dim); font-size: .82rem; }
.chip { display: inline-block; padding: 0 .55rem; border-radius: 1rem; font-size: .82rem;
  font-weight: 600; background: #eaeef2; color: #4b535d; }
.chip.sft { background: #dfeaf7; color: #245593; }
.chip.ppo { background: #fbe6d9; color: #a34d12; }
.chip.ppo_ptx { background: #d9f0e6; color: #1c6e4b; }
.plots { display: grid; gap: 1rem; grid-template-columns: 1fr 1fr; }
figure { margin: 0; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: .9rem; display: flex; align-items: center; }
figure.wide { grid-column: 1 / -1; }
img { display: block; width: 100%; height: auto; margin: 0 auto; }
@media (max-width: 800px) { .plots { grid-template-columns: 1fr; } }
article, .rollout { margin-bottom: 1.4rem; }
.controls { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center; }
.controls label { display: flex; align-items: center; gap: .5rem; color: var(--dim); }
.controls output { min-width: 2.5rem; color: var(--ink); font-weight: 600; }
select, input[type=search] { font: inherit; padding: .3rem .5rem; border: 1px solid var(--line);
  border-radius: 6px; background: var(--paper); color: inherit; }
input[type=search] { flex: 1; min-width: 12rem; }
.rollout { background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem .9rem; margin-bottom: .6rem; overflow-wrap: anywhere; }
.rollout .prompt { color: var(--dim); }
.rollout .figures { float: right; margin-left: 1rem; color: var(--dim); font-size: .82rem;
  font-variant-numeric: tabular-nums; }
.rollout .cut { color: #a34d12; }
#damage { color: #a34d12; overflow-wrap: anywhere; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  padding: 1rem; overflow: auto; font-size: .82rem; }
summary { cursor: pointer; color: var(--accent); }
@media print { header { position: static; } figure, article { break-inside: avoid; } }
"""

# Text is only ever set as textContent, so a sampled "<script>" stays text.
SCRIPT = """
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const all = JSON.parse(source.textContent);
  const labels = JSON.parse(document.getElementById("labels").textContent);
  const at = (id) => document.getElementById(id);
  const unique = (values) => [...new Set(values)];
  const add = (parent, kind, name, text) => {
    const element = parent.appendChild(document.createElement(kind));
    element.className = name;
    element.textContent = text;
    return element;
  };
  const shown = (value) => (value === null ? "-" : value.toFixed(2));
  let steps = [];
  for (const name of unique(all.map((s) => s.stage))) {
    const option = add(at("stage"), "option", "", labels[name] || name);
    option.value = name;
  }
  const chooseStage = () => {
    steps = unique(all.filter((s) => s.stage === at("stage").value).map((s) => s.step));
    steps.sort((a, b) => a - b);
    at("step").max = steps.length - 1;
    at("step").value = steps.length - 1;
    draw();
  };
  const draw = () => {
    const step = steps[Number(at("step").value)];
    at("at").textContent = step;
    const words = at("find").value.toLowerCase();
    const found = all.filter((s) => s.stage === at("stage").value && s.step === step
      && (s.prompt + " " + s.response).toLowerCase().includes(words));
    const order = at("order").value;
    const key = order.replace("-", "");
    found.sort((a, b) => (order.startsWith("-") ? b[key] - a[key] : a[key] - b[key]));
    at("count").textContent = found.length + " sampled responses of this iteration";
    at("browser").replaceChildren();
    for (const s of found) {
      const box = add(at("browser"), "div", "rollout", "");
      const figures = add(box, "span", "figures",
        "score " + shown(s.score) + " · KL " + shown(s.kl) + " nats · version "
        + s.policy_version + " · ");
      add(figures, "span", s.finish === "stop" ? "" : "cut", s.finish);
      add(box, "div", "prompt", s.prompt);
      add(box, "div", "response", s.response || "(empty)");
    }
  };
  at("stage").addEventListener("change", chooseStage);
  for (const id of ["step", "find", "order"]) at(id).addEventListener("input", draw);
  chooseStage();
})();
"""
