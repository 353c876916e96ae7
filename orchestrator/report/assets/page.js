// Text is only ever set as textContent, so a sampled "<script>" stays text.
(() => {
  const source = document.getElementById("rollout-data");
  if (!source) return;
  const all = JSON.parse(source.textContent);
  const labels = JSON.parse(document.getElementById("rollout-labels").textContent);
  const at = (id) => document.getElementById(id);
  const unique = (values) => [...new Set(values)];
  const add = (parent, kind, name, text) => {
    const element = parent.appendChild(document.createElement(kind));
    element.className = name;
    element.textContent = text;
    return element;
  };
  const terms = (values) => {
    const all = Object.entries(values || {});
    return all.length === 0 ? ""
      : " (" + all.map(([name, v]) => name + " " + (v === null ? "failed" : shown(v))).join(", ")
        + ")";
  };
  // Characters that cannot be seen are named, line ends and tabs are kept.
  const say = (parent, name, text) => {
    const box = add(parent, "div", name, "");
    for (const piece of text.split(/((?:(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}])+)/u)) {
      const hidden = /^(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(piece);
      if (!hidden) box.append(piece);
      else add(box, "span", "mark", [...piece].map((c) =>
        "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")).join(" "));
    }
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
        "score " + shown(s.score) + terms(s.terms)
        + (s.kl === null ? "" : " · KL " + shown(s.kl) + " nats") + " · version "
        + s.policy_version + " · ");
      add(figures, "span", s.finish === "stop" ? "" : "cut", s.finish);
      if (s.dropped) add(figures, "span", "cut", " · dropped: " + s.dropped);
      say(box, "prompt", s.prompt);
      say(box, "response", s.response || "(empty)");
    }
  };
  at("stage").addEventListener("change", chooseStage);
  for (const id of ["step", "find", "order"]) at(id).addEventListener("input", draw);
  chooseStage();
})();
