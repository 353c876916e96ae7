// Keys and the order so far. The pages work without this file.
"use strict";

const form = document.getElementById("judge");
const IDLE_SECONDS = 60; // without a key or a touch for this long, nobody works on the task
const RENEW_SECONDS = 60;

const groups = () => [...form.querySelectorAll("[data-group]")];
const radios = (group) => [...group.querySelectorAll("input[type=radio]")];
const chosen = (group) => radios(group).find((radio) => radio.checked);
const asked = (group) => group.offsetParent !== null && !group.disabled;

function focusOn(group) {
  if (!group) {
    document.getElementById("save").focus();
    return;
  }
  (chosen(group) || radios(group)[0]).focus();
  const place = group.closest("article") || group;
  place.scrollIntoView({ block: "nearest" });
}

function current() {
  const active = document.activeElement;
  const inside = active && active.closest("[data-group]");
  if (inside) return inside;
  const article = active && active.closest("article");
  return (article && article.querySelector("[data-group]")) || null;
}

function step(from, by) {
  const all = groups().filter(asked);
  return all[all.indexOf(from) + by];
}

function openFlags() {
  const article = document.activeElement.closest("article");
  const details = article && article.querySelector("details.flags");
  if (!details) return;
  details.open = true;
  details.querySelector("input, select").focus();
}

function choose(key) {
  const group = current() || groups().find((each) => asked(each) && !chosen(each));
  const radio = group && radios(group).find((each) => each.dataset.key === key);
  if (!radio) return false;
  radio.checked = true;
  radio.dispatchEvent(new Event("change", { bubbles: true }));
  focusOn(step(group, 1));
  return true;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const kind = event.target.tagName;
  const typing = kind === "TEXTAREA" || kind === "SELECT";
  if (event.key === "Escape") {
    focusOn(current() || groups()[0]);
  } else if (typing) {
    return;
  } else if (event.key === "f") {
    openFlags();
  } else if (event.key === "j" || event.key === "k") {
    focusOn(step(current() || groups()[0], event.key === "j" ? 1 : -1) || groups()[0]);
  } else if (!choose(event.key)) {
    return;
  }
  event.preventDefault();
}

// The order in one line, and where it contradicts the ratings.
function showOrder() {
  const tie = form.querySelector("#choice-tie");
  if (tie) {
    form.querySelector("#strength-1").closest("fieldset").disabled = tie.checked;
    return;
  }
  const value = (name) => Number((form.querySelector(`input[name="${name}"]:checked`) || {}).value || 0);
  const letters = groups().map((g) => radios(g)[0].name).filter((n) => n.startsWith("rank-")).map((n) => n.slice(5));
  const answers = letters.map((letter) => ({ letter, rank: value(`rank-${letter}`), likert: value(`likert-${letter}`) }));
  const ranked = answers.filter((a) => a.rank).sort((a, b) => a.rank - b.rank);
  const text = ranked.map((a, i) => (i ? (a.rank === ranked[i - 1].rank ? " = " : " > ") : "") + a.letter).join("");
  const odd = ranked.flatMap((a) => ranked.filter((b) => a.rank < b.rank && a.likert && b.likert && a.likert < b.likert)
    .map((b) => `${a.letter} is ranked above ${b.letter}, whose quality is higher`));
  const line = document.getElementById("order");
  line.textContent = [text && `So far: ${text}`, odd[0]].filter(Boolean).join(". ");
}

// Seconds in which somebody used the page, and the lease of the task.
function keepTime() {
  let last = performance.now();
  let worked = 0;
  let renewed = 0;
  for (const name of ["keydown", "pointerdown", "pointermove", "scroll"]) {
    document.addEventListener(name, () => { last = performance.now(); }, { passive: true });
  }
  setInterval(() => {
    if (document.hidden || performance.now() - last > IDLE_SECONDS * 1000) return;
    worked += 1;
    if (worked - renewed < RENEW_SECONDS || !form.dataset.renew) return;
    renewed = worked;
    const body = new URLSearchParams({ proof: form.elements.proof.value });
    fetch(form.dataset.renew, { method: "POST", body }).catch(() => {});
  }, 1000);
  form.addEventListener("submit", () => {
    if (form.elements.seconds) form.elements.seconds.value = String(worked);
  });
}

if (form) {
  document.addEventListener("keydown", onKey);
  form.addEventListener("change", showOrder);
  showOrder();
  keepTime();
  const problem = document.querySelector(".problems a");
  if (problem) problem.focus();
  else if (!location.pathname.startsWith("/review")) focusOn(groups().find((each) => asked(each) && !chosen(each)));
  window.scrollTo(0, 0);
}
