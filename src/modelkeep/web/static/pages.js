// Draws the figures and keeps the page fresh. Every page reads well without it.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("live");
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  // Figures name colours of the style sheet, as "var:stable"; so they follow light and dark.
  const themed = (value) => {
    if (typeof value === "string") return value.startsWith("var:") ? colour(value.slice(4)) : value;
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item)]));
    return value;
  };

  const draw = (canvas) => {
    if (!window.Plotly) return;
    const figure = themed(JSON.parse(canvas.dataset.figure));
    window.Plotly.react(canvas, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  };
  const drawAll = () => document.querySelectorAll(".canvas").forEach(draw);

  // A plot that is on the page already stays where it is and moves to its new data.
  const keepPlots = (fresh) => {
    for (const canvas of fresh.querySelectorAll(".canvas[id]")) {
      const old = document.getElementById(canvas.id);
      if (!old) continue;
      old.dataset.figure = canvas.dataset.figure;
      canvas.replaceWith(old);
    }
    for (const details of document.querySelectorAll("main details[open][id]")) {
      const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
      if (same) same.open = true;
    }
  };

  let busy = false, again = false;
  const refresh = async () => {
    if (busy || document.hidden) { again = true; return; }
    if (document.querySelector("main form :focus")) return;
    busy = true; again = false;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const fresh = document.adoptNode(page.querySelector("main"));
        keepPlots(fresh);
        document.querySelector("main").replaceWith(fresh);
        drawAll();
      }
    } catch { /* the server is away; the stream reconnects by itself */ }
    busy = false;
    if (again) setTimeout(refresh, 300);
  };

  const state = document.querySelector(".state");
  const said = (text, on) => { state.classList.toggle("on", on); state.lastElementChild.textContent = text; };
  const stream = new EventSource(state.dataset.stream);
  stream.onopen = () => said("live", true);
  stream.onerror = () => said("reconnecting", false);
  stream.addEventListener("changed", refresh);
  addEventListener("pagehide", () => stream.close());
  document.addEventListener("visibilitychange", () => { if (!document.hidden && again) refresh(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
