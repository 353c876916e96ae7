// Loads the page again while the run goes on, without losing the place or what is open. Without
// scripts, a meta element does it.
(() => {
  const seconds = Number(document.body.dataset.refresh);
  if (!seconds) return;
  const busy = () => {
    const at = document.activeElement;
    return document.hidden || (at && /^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName))
      || String(getSelection()) !== "";
  };
  const refresh = async () => {
    try {
      if (!busy()) {
        const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        if (answer.ok && !busy()) document.querySelector("main").replaceWith(page.querySelector("main"));
        if (!Number(page.body.dataset.refresh)) return; // the run has ended
      }
    } catch {
      // the server is away: try again
    }
    setTimeout(refresh, seconds * 1000);
  };
  setTimeout(refresh, seconds * 1000);
})();
