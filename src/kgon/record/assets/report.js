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

  // ---- Axes of charts.
  function decades(from, to, digits) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(from)); e <= Math.log10(to); e++)
      for (const digit of digits) {
        const tick = Number(`${digit}e${e}`);
        if (tick >= from && tick <= to) ticks.push(tick);
      }
    return ticks;
  }
  const short = v => v >= 1e6 ? v.toExponential().replace("e+", "e") : v >= 1e4 ? `${v / 1000}k` : v > 0 && v < 1e-3 ? v.toExponential() : String(v);
  const variable = name => getComputedStyle(document.documentElement).getPropertyValue(name);
  const axis = (label, size) => {
    const font = "12px system-ui, sans-serif", rule = { stroke: variable("--line"), width: 1 };
    return { stroke: variable("--soft"), font, labelFont: font, labelSize: 20, ticks: rule, grid: rule,
      label, size, values: (u, splits) => splits.map(short) };
  };
  const logTicks = (from, digits) => ({
    splits: (u, axis, min, max) => decades(Math.max(min, from), max, max / Math.max(min, from) < 100 ? [1, 2, 5] : digits),
    filter: (u, splits) => splits,
  });
  const logSteps = first => ({ ...logTicks(first, [1]),
    splits: (u, axis, min, max) => [...(min <= 0 ? [0] : []), ...decades(Math.max(min, first), max, [1])] });

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
      return [
        { ...axis("optimizer steps", 36), grid: { show: false }, ...(logs.x ? logSteps(data.first) : {}) },
        { ...axis(data.name, 52), ...(logs.y ? logTicks(1e-12, [1]) : {}) },
        { ...axis(null, 60), scale: "y", side: 1, gap: 5, grid: { show: false }, ticks: { show: false }, filter: (u, splits) => splits,
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

  // ---- The columns of W at a snapshot, chosen by a slider, beside the loss and the LLC.
  function slider(box, data) {
    const svg = box.querySelector("svg"), range = box.querySelector("input"), readout = box.querySelector("output");
    const choice = box.querySelector("select"), play = box.querySelector("[data-play]"), log = box.querySelector("[data-axis]");
    const places = box.querySelectorAll(".curves > div");
    let own, plots = [], timer, turn = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
    const now = () => Number(range.value), colour = phase => data.colors[phase][dark.matches ? 1 : 0];
    const shade = bias => data.bias[Math.round((clamp(bias, -1, 1) + 1) / 2 * (data.bias.length - 1))];
    const put = (kind, attributes) => {
      const part = svg.appendChild(document.createElementNS(svg.namespaceURI, kind));
      for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
      return part;
    };

    // The corners of the convex hull of points, by Andrew's monotone chain.
    function hull(points) {
      const half = sorted => sorted.reduce((kept, p) => {
        const left = (a, b) => (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0;
        while (kept.length > 1 && !left(kept[kept.length - 2], kept[kept.length - 1])) kept.pop();
        return [...kept, p];
      }, []).slice(0, -1);
      const sorted = [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      return [...half(sorted), ...half(sorted.reverse())];
    }
    function columns(W, b, phase) {
      const ink = variable("--ink"), line = { stroke: ink, "stroke-width": 0.012 };
      put("circle", { r: 1 / own.reach, fill: "none", stroke: variable("--soft"), "stroke-width": 0.008, "stroke-dasharray": "0.03 0.03" });
      const tips = W.map((column, i) => {
        const seen = column.length === 3 ? turn.map(row => row.reduce((sum, r, k) => sum + r * column[k], 0)) : [...column, 0];
        return { x: seen[0] / own.reach, y: -seen[1] / own.reach, z: seen[2], b: b[i], length: Math.hypot(...column) };
      });
      const live = tips.filter(tip => tip.length >= data.dead).sort((p, q) => p.z - q.z);
      const corners = hull(live.map(tip => [tip.x, tip.y]));
      if (corners.length > 2)
        put("polygon", { points: corners.join(" "), fill: colour(phase), "fill-opacity": 0.2, stroke: colour(phase), "stroke-width": 0.015 });
      for (const { x, y, b, length } of live) {
        const off = b < -length * length;
        put("line", { x2: x, y2: y, ...line, ...(off ? { "stroke-dasharray": "0.02 0.03" } : {}) });
        put("circle", { cx: x, cy: y, r: 0.04, fill: shade(b), ...line, class: off ? "off" : "live" });
      }
      const dead = tips.filter(tip => tip.length < data.dead).sort((p, q) => q.b - p.b);
      dead.forEach((tip, i) => put("circle", { cx: 0.25 * (i - (dead.length - 1) / 2), r: tip.b > 0 ? 0.04 : 0.022,
        fill: tip.b > 0 ? variable("--paper") : ink, ...line, class: "dead" }));
    }
    function gram(W, b) {
      const n = b.length, side = 2 / (n + 2);
      const cell = (row, column, value) => put("rect", { x: column * side - 1, y: row * side - 1 + side, width: side, height: side, fill: shade(value) });
      W.forEach((w, i) => {
        W.forEach((v, j) => cell(i, j, w.reduce((sum, x, k) => sum + x * v[k], 0)));
        cell(i, n + 1, b[i]);
      });
    }
    function show() {
      const at = now(), W = own.W[at], b = own.b[at], phase = own.names[own.phase[at]];
      svg.replaceChildren();
      if ([...W, b].flat().includes(null)) put("text", { "text-anchor": "middle", fill: "currentColor" }).textContent = "not finite";
      else if (data.n_hidden === 2 || data.n_hidden === 3) columns(W, b, phase);
      else gram(W, b);
      let said = `step ${own.steps[at].toLocaleString("en")}, phase ${phase}, loss ${own.loss[at] ?? "not recorded"}`;
      if (own.llc) {
        const last = own.llc.slice(0, at + 1).findLastIndex(value => value !== null);
        if (last >= 0) said += `, LLC ${own.llc[last].toFixed(2)} \u00b1 ${own.stderr[last]?.toFixed(2)} (${own.verdict[last]}` +
          `${last < at ? `, at step ${own.steps[last].toLocaleString("en")}` : ""})`;
      }
      readout.textContent = said;
      range.setAttribute("aria-valuetext", said);
      svg.setAttribute("aria-label", `Columns of W at step ${own.steps[at]}, phase ${phase}`);
      plots.forEach(plot => plot.redraw(false));
    }
    function curve(place, label, values, theory, isLog, bottom) {
      const ink = variable("--ink"), first = 10 ** Math.floor(Math.log10(own.steps.find(s => s > 0) ?? 1));
      const ok = own.verdict?.map(verdict => verdict === "ok"), loss = values === own.loss;
      const known = [...values, ...own.plateaus.map(p => p[theory])].filter(v => v !== null && (!isLog || v > 0));
      const low = Math.min(...known), high = Math.max(...known), floor = Math.max(Math.min(low, 0), -0.25 * Math.max(high, 1));
      const line = (u, x, y, to, toY) => {
        u.ctx.beginPath(); u.ctx.moveTo(x, y); u.ctx.lineTo(to, toY); u.ctx.stroke();
      };
      const inside = (u, draw) => {
        u.ctx.save();
        u.ctx.beginPath(); u.ctx.rect(u.bbox.left - 1, u.bbox.top, u.bbox.width + 2, u.bbox.height); u.ctx.clip();
        draw();
        u.ctx.restore();
      };
      const plot = new uPlot({
        width: place.clientWidth, height: place.clientHeight, legend: { show: false }, cursor: { y: false, drag: { x: false } },
        axes: [
          { ...axis(bottom ? "optimizer steps" : null, bottom ? 36 : 8), grid: { show: false }, ...(log.ariaPressed === "true" ? logSteps(first) : {}),
            ...(bottom ? {} : { values: () => [] }) },
          { ...axis(label, 52), ...(isLog ? logTicks(1e-12, [1]) : {}) },
        ],
        padding: [8, 8, 0, 0],
        scales: {
          x: { time: false, range: (u, min, max) => [min, max], ...(log.ariaPressed === "true" ? { distr: 4, asinh: first } : {}) },
          y: { distr: isLog ? 3 : 1, range: isLog ? [0.92 * low, 1.05 * high] : [floor - 0.05 * high, 1.1 * high] },
        },
        series: loss ? [{}, { stroke: ink, width: 1.5, points: { show: false } }] :
          [{}, ...[ink, variable("--paper")].map(fill => ({ stroke: ink, paths: () => null, points: { show: true, size: 6, fill, stroke: ink } }))],
        hooks: {
          drawClear: [u => own.plateaus.forEach(([start, end, phase]) => {
            const x = u.valToPos(start, "x", true);
            u.ctx.fillStyle = colour(phase) + "26";
            u.ctx.fillRect(x, u.bbox.top, u.valToPos(end, "x", true) - x, u.bbox.height);
          })],
          drawAxes: [u => inside(u, () => {
            u.ctx.strokeStyle = ink; u.ctx.lineWidth = 1;
            if (!loss) own.steps.forEach((s, i) => {
              if (values[i] === null || own.stderr[i] === null) return;
              const x = u.valToPos(s, "x", true), [from, to] = [-1, 1].map(sign => u.valToPos(values[i] + sign * own.stderr[i], "y", true));
              line(u, x, from, x, to);
            });
          })],
          draw: [u => inside(u, () => {
            u.ctx.setLineDash([6, 4]);
            for (const p of own.plateaus) if (p[theory] !== null) {
              const y = u.valToPos(p[theory], "y", true);
              u.ctx.strokeStyle = colour(p[2]); u.ctx.lineWidth = 1.5;
              line(u, u.valToPos(p[0], "x", true), y, u.valToPos(p[1], "x", true), y);
            }
            u.ctx.setLineDash([]);
            const x = u.valToPos(own.steps[now()], "x", true);
            u.ctx.strokeStyle = variable("--link"); u.ctx.lineWidth = 2;
            line(u, x, u.bbox.top, x, u.bbox.top + u.bbox.height);
          })],
        },
      }, [own.steps, ...(loss ? [values] : [true, false].map(good => values.map((v, i) => ok[i] === good ? v : null)))], place);
      plot.over.addEventListener("click", () => { range.value = plot.cursor.idx; show(); });
      return plot;
    }
    function build() {
      plots.forEach(plot => plot.destroy());
      const positive = own.loss.some(v => v !== null) && own.loss.every(v => v === null || v > 0);
      places[1].hidden = !own.llc;
      plots = [curve(places[0], data.name, own.loss, 3, positive, !own.llc)];
      if (own.llc) plots.push(curve(places[1], "LLC", own.llc, 4, false, true));
      show();
    }
    function choose() {
      own = data.members[choice.value];
      range.max = own.steps.length - 1;
      range.value = range.max;
      build();
    }
    function stop() { clearInterval(timer); timer = undefined; play.textContent = "play"; }
    function rotate(across, up) {
      const [c, s, d, t] = [Math.cos(across), Math.sin(across), Math.cos(up), Math.sin(up)];
      const by = [[c, 0, s], [t * s, d, -t * c], [-d * s, t, d * c]];
      turn = by.map(row => [0, 1, 2].map(k => row.reduce((sum, r, j) => sum + r * turn[j][k], 0)));
      show();
    }
    if (data.n_hidden === 3) {
      svg.classList.add("turns");
      let held = null;
      svg.addEventListener("pointerdown", event => { svg.setPointerCapture(event.pointerId); held = event; });
      svg.addEventListener("lostpointercapture", () => { held = null; });
      svg.addEventListener("pointermove", event => {
        if (!held) return;
        rotate(0.01 * (event.clientX - held.clientX), 0.01 * (event.clientY - held.clientY));
        held = event;
      });
      svg.addEventListener("keydown", event => {
        const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
        if (by) { event.preventDefault(); rotate(...by); }
      });
    }
    log.ariaPressed = "true";
    log.addEventListener("click", () => { log.ariaPressed = String(log.ariaPressed !== "true"); build(); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (now() === Number(range.max)) range.value = 0;
      play.textContent = "pause";
      timer = setInterval(() => { range.value = now() + 1; show(); if (now() === Number(range.max)) stop(); }, 60);
    });
    range.addEventListener("input", () => { stop(); show(); });
    choice.addEventListener("change", () => { stop(); choose(); });
    dark.addEventListener("change", build);
    choose();
    new ResizeObserver(() => plots.forEach((plot, i) =>
      plot.setSize({ width: places[i].clientWidth, height: places[i].clientHeight }))).observe(places[0]);
  }

  // ---- Tables and charts start when their part of the page is first seen: hundreds of runs open at once.
  function start(scope) {
    scope.querySelectorAll("script[type='text/html']").forEach(held => { held.outerHTML = held.textContent; });
    scope.querySelectorAll("table.sortable").forEach(sortable);
    scope.querySelectorAll(".chart").forEach(box =>
      chart(box, JSON.parse(document.getElementById(box.dataset.source).textContent)));
    scope.querySelectorAll(".slider").forEach(box =>
      slider(box, JSON.parse(document.getElementById(box.dataset.source).textContent)));
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
