"use strict";
(() => {
  const { figures, dark } = JSON.parse(document.getElementById("report-data").textContent);
  const night = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll("[data-figure]")];
  const tools = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  let onPaper = false;

  const repaint = (node) => {
    if (typeof node === "string") return dark[node] ?? node;
    if (Array.isArray(node)) return node.map(repaint);
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, repaint(value)]));
  };

  const draw = (plot) => {
    const form = plot.closest("section").querySelector("form");
    const chosen = form ? Object.fromEntries(new FormData(form)) : {};
    const figure = figures[plot.dataset.figure.replace(/\{(\w+)\}/g, (_, name) => chosen[name])];
    plot.classList.toggle("empty", !figure);
    if (!figure) return Plotly.purge(plot);
    const copy = night.matches && !onPaper ? repaint(figure) : structuredClone(figure);
    if (plot.hasAttribute("data-one-attack") && chosen.attack) {
      copy.data = copy.data.filter((trace) => !trace.meta || trace.meta.attack === chosen.attack);
      copy.data.forEach((trace) => trace.meta && Object.assign(trace, { showlegend: true, opacity: 1, line: { ...trace.line, ...trace.meta.alone } }));
    }
    // Printing lays the page out anew without telling the plots: give them their size on a sheet beforehand.
    const tall = plot.classList.contains("tall");
    const own = Math.min(parseFloat(plot.style.height) || 400, 880);
    if (onPaper) Object.assign(copy.layout, tall ? { width: 640, height: own } : { width: 290, height: 240 });
    const displayModeBar = tall && "hover";
    return Plotly.react(plot, copy.data, copy.layout, { responsive: true, displaylogo: false, displayModeBar, modeBarButtons: tools });
  };

  const drawAll = () => plots.forEach(draw);
  document.querySelectorAll("form").forEach((form) => {
    form.addEventListener("change", () => form.closest("section").querySelectorAll("[data-figure]").forEach(draw));
    form.addEventListener("submit", (event) => event.preventDefault());
  });
  night.addEventListener("change", drawAll);

  const folded = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  addEventListener("beforeprint", () => {
    onPaper = true;
    opened = folded();
    opened.forEach((details) => (details.open = true));
    drawAll();
  });
  addEventListener("afterprint", () => {
    onPaper = false;
    opened.forEach((details) => (details.open = false));
    drawAll();
  });

  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const watcher = new IntersectionObserver(
    (entries) =>
      entries.forEach(({ target, isIntersecting }) => {
        if (!isIntersecting) return;
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(target.id)?.setAttribute("aria-current", "true");
      }),
    { rootMargin: "-10% 0px -80% 0px" },
  );
  links.forEach((_, id) => watcher.observe(document.getElementById(id)));

  drawAll();
})();
