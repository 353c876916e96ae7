// The values at the step that is nearest to the pointer, in the legend of its chart.
(() => {
  for (const svg of document.querySelectorAll("svg[data-readings]")) {
    const readings = JSON.parse(svg.dataset.readings);
    const legend = [...svg.parentElement.querySelectorAll(".legend > span")];
    const last = readings.map((_, n) => legend[n].querySelector("b").textContent);
    const step = svg.parentElement.querySelector("figcaption").appendChild(
      document.createElement("span"));
    const line = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
    line.setAttribute("class", "at");
    const values = readings.map((_, n) => legend[n].querySelector("b"));
    const leave = () => {
      values.forEach((value, n) => { value.textContent = last[n]; });
      step.textContent = "";
      line.removeAttribute("d");
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const near = readings.map(([, points]) => points.reduce((best, point) =>
        (!best || Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best), null));
      const at = near.reduce((best, point) => (point && (!best
        || Math.abs(point[0] - x) < Math.abs(best[0] - x)) ? point : best), null);
      if (!at) return;
      line.setAttribute("d", `M${at[0]} 8V${svg.viewBox.baseVal.height - 22}`);
      step.textContent = "step " + at[1];
      near.forEach((point, n) => {
        values[n].textContent = point && point[1] === at[1] ? point[2] : "-";
      });
    });
    svg.addEventListener("pointerleave", leave);
  }
})();
