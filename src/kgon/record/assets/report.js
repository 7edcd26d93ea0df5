"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // ---- Tables: the button in a header sorts by the cells' data-value or text; blanks go last.
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const key = (row, column) => {
      const cell = row.cells[column], raw = cell.dataset.value ?? cell.textContent.trim();
      return raw === "" ? null : Number.isNaN(Number(raw)) ? raw.toLowerCase() : Number(raw);
    };
    const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b :
      String(a).localeCompare(String(b), undefined, { numeric: true });
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach(other => { other.ariaSort = "none"; });
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      const rows = [...body.rows].map(row => [key(row, column), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    }));
  }

  // ---- The filter above the table of runs, which also hides the runs' details.
  function filter(bar) {
    const rows = [...document.getElementById(bar.dataset.filter).tBodies[0].rows];
    const text = bar.querySelector("input"), state = bar.querySelector("select"), count = bar.querySelector("output");
    const apply = () => {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const content = (row.textContent + " " + row.dataset.words).toLowerCase();
        row.hidden = !((!state.value || row.dataset.state === state.value) && words.every(word => content.includes(word)));
        document.getElementById(row.dataset.details).hidden = row.hidden;
      }
      count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} runs`;
    };
    text.addEventListener("input", apply);
    state.addEventListener("change", apply);
    apply();
  }

  // ---- Loss curves with uPlot. Critical levels are series too: dashed, and named at the right.
  function chart(box, data) {
    const place = box.querySelector(".plot"), readout = box.querySelector("output"), hint = readout.textContent;
    const { steps, curves, range: [low, top] } = data, last = steps[steps.length - 1];
    const levels = data.levels.filter(([, loss]) => loss >= low && loss <= top);
    const series = [
      ...levels.map(([label, loss]) => ({ name: `critical point ${label}`, phase: label, y: steps.map(() => loss), dash: [5, 4] })),
      ...curves.map(c => ({ name: `member ${c.member}, final phase ${c.phase}`, phase: c.phase, y: c.y })),
    ];
    const logs = { x: true, y: low > 0 }, at = { series: null, index: 0 };
    const opacity = Math.round(255 * clamp(15 / curves.length, 0.3, 0.9)).toString(16).padStart(2, "0");
    let plot;

    function say() {
      const of = series[at.series - 1], loss = of && of.y[at.index];
      readout.textContent = !of ? hint :
        `${of.name}, step ${steps[at.index]}, loss ${typeof loss === "number" ? Number(loss.toPrecision(5)) : "stopped"}`;
    }
    function decades(from, to, digits) {
      const ticks = [];
      for (let e = Math.floor(Math.log10(from)); e <= Math.log10(to); e++)
        for (const digit of digits) {
          const tick = Number(`${digit}e${e}`);
          if (tick >= from && tick <= to) ticks.push(tick);
        }
      return ticks;
    }
    const short = v => v >= 1e4 ? v.toExponential().replace("e+", "e") : v > 0 && v < 1e-3 ? v.toExponential() : String(v);
    // Names of levels that would touch are left out; the phases that members end in come first.
    function named(u) {
      const ended = new Set(curves.map(c => c.phase)), taken = [];
      const order = [...levels].sort((a, b) => ended.has(b[0]) - ended.has(a[0]));
      return order.filter(([, loss]) => {
        const y = u.valToPos(loss, "y"), free = loss >= u.scales.y.min && taken.every(other => Math.abs(other - y) > 12);
        if (free) taken.push(y);
        return free;
      });
    }
    function axes() {
      const style = getComputedStyle(document.documentElement);
      const soft = style.getPropertyValue("--soft"), rule = { stroke: style.getPropertyValue("--line"), width: 1 };
      const font = "12px system-ui, sans-serif", plain = { stroke: soft, font, labelFont: font, labelSize: 20, ticks: rule, grid: rule };
      const log = (from, digits) => ({
        splits: (u, axis, min, max) => decades(Math.max(min, from), max, max / Math.max(min, from) < 100 ? [1, 2, 5] : digits),
        filter: (u, splits) => splits,
      });
      const zero = (u, axis, min, max) => [...(min <= 0 ? [0] : []), ...decades(Math.max(min, data.first), max, [1])];
      return [
        { ...plain, label: "optimizer steps", size: 36, values: (u, splits) => splits.map(short), grid: { show: false },
          ...(logs.x ? { ...log(data.first, [1]), splits: zero } : {}) },
        { ...plain, label: data.name, size: 52, values: (u, splits) => splits.map(short),
          ...(logs.y ? log(1e-12, [1]) : {}) },
        { ...plain, scale: "y", side: 1, size: 60, gap: 5, grid: { show: false }, ticks: { show: false }, filter: (u, splits) => splits,
          splits: u => named(u).map(([, loss]) => loss), values: u => named(u).map(([label]) => label) },
      ];
    }
    function build() {
      if (plot) plot.destroy();
      const colour = phase => data.colors[phase][dark.matches ? 1 : 0];
      plot = new uPlot({
        width: place.clientWidth, height: place.clientHeight, legend: { show: false }, axes: axes(),
        padding: [8, 0, 0, 0],
        scales: {
          x: { time: false, range: (u, min, max) => [min, max], ...(logs.x ? { distr: 4, asinh: data.first } : {}) },
          y: { range: [logs.y ? Math.max(low || data.least, top * 1e-6) : 0, top], distr: logs.y ? 3 : 1 },
        },
        series: [{}, ...series.map(s => ({
          stroke: (u, index) => colour(s.phase) + (s.dash || index === at.series ? "" : opacity),
          width: 1.25, dash: s.dash, points: { show: false },
        }))],
        cursor: { y: false, focus: { prox: 40 }, points: { one: true, size: 7 } },
        focus: { alpha: 0.4 },
        hooks: {
          setCursor: [u => { if (u.cursor.idx !== null && u.cursor.idx !== undefined) at.index = u.cursor.idx; say(); }],
          setSeries: [(u, index) => { at.series = index; say(); }],
        },
      }, [steps, ...series.map(s => s.y)], place);
    }
    place.addEventListener("keydown", event => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move || !curves.length) return;
      event.preventDefault();
      const chosen = clamp((at.series ?? levels.length + 1 - move[0]) + move[0], levels.length + 1, series.length);
      const index = clamp(at.index + move[1], 0, steps.length - 1);
      plot.setCursor({ left: plot.valToPos(steps[index], "x"), top: plot.valToPos(series[chosen - 1].y[index] ?? low, "y") });
      plot.setSeries(chosen, { focus: true });
      Object.assign(at, { series: chosen, index });
      say();
    });
    box.querySelectorAll("button").forEach(button => {
      const axis = button.dataset.axis;
      button.ariaPressed = logs[axis];
      button.addEventListener("click", () => {
        logs[axis] = !logs[axis];
        button.ariaPressed = logs[axis];
        build();
      });
    });
    dark.addEventListener("change", build);
    build();
    new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
  }

  // ---- Tables and charts start when their part of the page is first seen: hundreds of runs open at once.
  function start(scope) {
    scope.querySelectorAll("script[type='text/html']").forEach(held => { held.outerHTML = held.textContent; });
    scope.querySelectorAll("table.sortable").forEach(sortable);
    scope.querySelectorAll(".chart").forEach(box =>
      chart(box, JSON.parse(document.getElementById(box.dataset.source).textContent)));
  }
  document.querySelectorAll("details.run").forEach(run =>
    run.addEventListener("toggle", () => start(run), { once: true }));
  document.querySelectorAll("section:not(:has(details.run))").forEach(start);
  document.querySelectorAll("[data-filter]").forEach(filter);
  // A link to a run's details opens them.
  function openTarget() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.matches("details")) { target.open = true; target.querySelector("summary").focus(); }
  }
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();
