"use strict";
(() => {
  const root = document.getElementById("replay");
  const data = JSON.parse(document.getElementById("replay-data").textContent);
  const range = root.querySelector("input"), output = root.querySelector("output"), said = root.querySelector(".said");
  const playButton = root.querySelector('[data-do="play"]'), speed = root.querySelector('[data-do="speed"]');
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const stages = [...root.querySelectorAll(".stage")], chosen = stages.map((_, k) => k); // which run each stage shows
  const count = data.arrival.length;
  let now = 0, playing = false, last = 0, drawn = 0, tallest = 0, top = 0, palette = {};

  // ---- data: for each run, what each batch holds -----------------------------------------------------------------
  for (const run of data.runs) {
    run.prefills = run.batches.map(() => []);
    run.decoded = run.batches.map(() => []);
    run.done = data.prompt.map(() => []); // of each request: [end of batch, tokens of its prompt so far]
    const sum = run.before.slice();
    for (const [batch, request, tokens] of run.chunks) {
      run.prefills[batch].push([request, tokens, sum[request]]);
      sum[request] += tokens;
      run.done[request].push([run.batches[batch][1], sum[request]]);
    }
    const turns = [];
    run.batches.forEach((batch, k) => (turns[batch[2]] ??= []).push(k));
    for (const [request, from, to] of run.decodes)
      for (const k of turns[run.batches[from][2]]) if (k >= from && k <= to) run.decoded[k].push(request);
    run.top = Math.max(data.budget, ...run.batches.map((batch) => batch[3]));
  }
  const edges = data.runs.map((run) => run.batches.map((batch) => batch[0]).filter((t) => t >= 0 && t <= data.length));

  // ---- what is where at a time -----------------------------------------------------------------------------------
  const came = (moment, time) => moment !== null && moment <= time;
  function look(run, time) {
    const found = { waiting: [], prefill: [], decode: [], finished: 0, kept: 0, late: 0, gaps: 0, running: [] };
    run.batches.forEach((batch, k) => { if (batch[0] <= time && time < batch[1]) found.running.push(k); });
    const busy = new Map();
    for (const k of found.running) {
      for (const [request, tokens, before] of run.prefills[k]) busy.set(request, [tokens, before]);
      for (const request of run.decoded[k]) busy.set(request, null);
    }
    for (let i = 0; i < count; i++) {
      if (data.arrival[i] > time) continue;
      const due = data.arrival[i] + data.ttft[i];
      const late = came(run.first[i], time) ? run.first[i] > due + 1 : time > due + 1;
      const gap = came(run.gaps[i], time);
      found.late += late; found.gaps += gap;
      if (came(run.finish[i], time)) { found.finished++; found.kept += run.kept[i]; continue; }
      const flash = still.matches ? 0 : Math.max(fresh(time, due, late), fresh(time, run.gaps[i], gap));
      const one = { i, late, gap, flash, active: busy.has(i) };
      if (came(run.first[i], time)) { found.decode.push(one); continue; }
      let tokens = run.before[i];
      for (const [end, so] of run.done[i]) { if (end > time) break; tokens = so; }
      if (busy.get(i)) {
        const [more, before] = busy.get(i), batch = run.batches[found.running.find((k) => run.prefills[k].some((c) => c[0] === i))];
        one.chunk = more; one.share = (time - batch[0]) / Math.max(1, batch[1] - batch[0]); tokens = before;
      }
      one.tokens = tokens; one.wait = Math.min(1, (time - data.arrival[i]) / data.ttft[i]);
      (tokens > 0 || one.chunk ? found.prefill : found.waiting).push(one);
    }
    found.kv = null;
    for (const [t, share] of run.kv) { if (t > time) break; found.kv = share; }
    return found;
  }
  const fresh = (time, moment, is) => (is && moment !== null ? Math.max(0, 1 - (time - moment) / 700) : 0);

  // ---- drawing ---------------------------------------------------------------------------------------------------
  const names = ["page", "ink", "soft", "faint", "grid", "miss", "prefill", "decode", "hero1", "other"];
  function colours() {
    const style = getComputedStyle(document.documentElement);
    palette = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }
  const HEIGHT = 388, STRIP = 84, SPAN = 4000;
  function draw(stage, run) {
    const canvas = stage.querySelector("canvas"), width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    const g = canvas.getContext("2d"), at = look(run, now);
    if (!width) return at;
    if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = HEIGHT * ratio; }
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, HEIGHT);
    g.font = "13px system-ui, sans-serif";
    g.textBaseline = "alphabetic";
    strip(g, run, width);
    zone(g, "waiting", at.waiting.length, 0, 118, width);
    squares(g, at.waiting, 0, 130, width, 52, true);
    zone(g, "in prefill", at.prefill.length, 0, 204, width);
    bars(g, at.prefill, 0, 216, width);
    zone(g, "decoding", at.decode.length, 0, 298, width);
    squares(g, at.decode, 0, 310, width, 34, false);
    gauge(g, at.kv, width);
    const kept = `${at.kept} of ${at.finished} finished within their promise`;
    stage.querySelector(".stats").textContent = `${kept} · ${at.late} first token${at.late === 1 ? "" : "s"} late · ${at.gaps} with a late gap`;
    return at;
  }
  function words(g, text, x, y, colour, align = "left") { g.fillStyle = colour; g.textAlign = align; g.fillText(text, x, y); }
  function zone(g, name, number, x, y) {
    words(g, String(number), x, y, palette.ink);
    words(g, name, x + 8 + 8 * String(number).length, y, palette.soft);
  }
  function strip(g, run, width) { // the last seconds of batches, now at the right end
    const low = now - SPAN, rows = Math.min(4, data.workers), tall = (STRIP - 20) / rows;
    const x = (t) => (width * (t - low)) / SPAN;
    const brief = width < 440;
    words(g, `tokens per batch${brief ? "" : ", last 4 s"}${top < tallest ? `, cut at ${top}` : ""}`, 0, 12, palette.soft);
    for (const [start, end, worker, tokens, prefill] of run.batches) {
      if (end < low || start > now || worker >= rows) continue;
      const base = 20 + tall * (worker + 1), scale = (tall - 3) / top;
      const a = Math.max(0, x(start)), b = Math.min(width, x(end)) - 1, blue = Math.max(1.5, (tokens - prefill) * scale);
      g.fillStyle = palette.decode;
      if (tokens > prefill) g.fillRect(a, base - blue, Math.max(1, b - a), blue);
      g.fillStyle = palette.prefill;
      const orange = Math.min(prefill * scale, tall - 3 - (tokens > prefill ? blue : 0));
      if (prefill) g.fillRect(a, base - (tokens > prefill ? blue : 0) - orange, Math.max(1, b - a), orange);
    }
    for (let w = 0; w < rows; w++) {
      const base = 20 + tall * (w + 1), y = base - (data.budget * (tall - 3)) / top;
      g.strokeStyle = palette.faint; g.lineWidth = 1; g.setLineDash([]);
      g.beginPath(); g.moveTo(0, base + .5); g.lineTo(width, base + .5); g.stroke();
      g.strokeStyle = palette.miss; g.setLineDash([4, 3]);
      g.beginPath(); g.moveTo(0, y); g.lineTo(width, y); g.stroke(); g.setLineDash([]);
    }
    words(g, `TBT target${brief ? ":" : " holds to"} ${data.budget}`, width, 12, palette.miss, "right");
  }
  function squares(g, list, x, y, width, tall, waiting) {
    const size = 12, step = 16, columns = Math.floor(width / step), room = columns * Math.floor(tall / step);
    list.slice(0, room).forEach((one, k) => {
      const a = x + step * (k % columns), b = y + step * Math.floor(k / columns), bad = one.late || one.gap;
      g.lineWidth = 1.5;
      if (waiting) {
        g.strokeStyle = bad ? palette.miss : palette.soft;
        g.strokeRect(a + .75, b + .75, size - 1.5, size - 1.5);
        g.fillStyle = bad ? palette.miss : palette.soft;
        const full = (size - 5) * one.wait;
        g.fillRect(a + 2.5, b + size - 2.5 - full, size - 5, full);
      } else {
        g.beginPath(); g.arc(a + size / 2, b + size / 2, size / 2 - 1, 0, 7);
        g.globalAlpha = one.active ? 1 : .35; g.fillStyle = palette.decode; g.fill(); g.globalAlpha = 1;
        if (bad) { g.strokeStyle = palette.miss; g.lineWidth = 2; g.stroke(); }
      }
      ring(g, a + size / 2, b + size / 2, one.flash);
    });
    if (list.length > room) words(g, `and ${list.length - room} more`, width, y - 12, palette.soft, "right");
  }
  function ring(g, x, y, flash) {
    if (!flash) return;
    g.strokeStyle = palette.miss; g.globalAlpha = flash; g.lineWidth = 2;
    g.beginPath(); g.arc(x, y, 8 + 12 * (1 - flash), 0, 7); g.stroke(); g.globalAlpha = 1;
  }
  function bars(g, list, x, y, width) {
    const most = 4, longest = Math.max(1000, ...data.prompt), room = width - 112;
    const shown = list.slice().sort((a, b) => Boolean(b.chunk) - Boolean(a.chunk)).slice(0, most);
    shown.forEach((one, k) => {
      const prompt = data.prompt[one.i], long = Math.max(26, room * Math.sqrt(prompt / longest)), top = y + 16 * k;
      const share = (tokens) => (long * Math.min(tokens, prompt)) / prompt;
      g.fillStyle = palette.grid; g.fillRect(x, top, long, 10);
      g.fillStyle = palette.prefill; g.fillRect(x, top, share(one.tokens), 10);
      if (one.chunk) {
        const ready = share(one.tokens), more = share(one.tokens + one.chunk) - ready;
        g.globalAlpha = .45; g.fillRect(x + ready, top, more, 10);
        g.globalAlpha = 1; g.fillRect(x + ready, top, more * (still.matches ? 0 : one.share), 10);
      }
      if (one.late || one.gap) { g.strokeStyle = palette.miss; g.lineWidth = 1.5; g.strokeRect(x + .75, top + .75, long - 1.5, 8.5); }
      words(g, `${prompt.toLocaleString("en")} tokens`, x + long + 8, top + 10, one.late ? palette.miss : palette.soft);
      ring(g, x + long, top + 5, one.flash);
    });
    if (list.length > most) words(g, `and ${list.length - most} more`, width, y - 12, palette.soft, "right");
  }
  function gauge(g, share, width) {
    const y = 366;
    if (share === null) return;
    words(g, "KV memory", 0, y + 12, palette.soft);
    words(g, `${share} %`, width, y + 12, palette.ink, "right");
    g.fillStyle = palette.grid; g.fillRect(80, y + 2, width - 130, 10);
    g.fillStyle = share > 95 ? palette.miss : palette.hero1; g.fillRect(80, y + 2, ((width - 130) * share) / 100, 10);
  }

  // ---- time ------------------------------------------------------------------------------------------------------
  function show(tell) {
    tallest = Math.max(...chosen.map((k) => data.runs[k].top));
    top = Math.min(tallest, 3 * data.budget);
    const found = stages.map((stage, k) => draw(stage, data.runs[chosen[k]]));
    range.value = String(Math.round(now));
    const seconds = (now / 1000).toFixed(1);
    output.textContent = `${seconds} s`;
    range.setAttribute("aria-valuetext", `${seconds} seconds`);
    if (tell) said.textContent = `${seconds} s. ` + found.map((at, k) => `${data.runs[chosen[k]].name}: ${at.waiting.length} waiting,` +
      ` ${at.prefill.length} in prefill, ${at.decode.length} decoding${at.kv === null ? "" : `, KV memory ${at.kv} % full`}.`).join(" ");
  }
  function go(time, tell = true) { now = Math.min(data.length, Math.max(0, time)); show(tell); }
  function step(by) {
    play(false);
    const seen = chosen.flatMap((k) => edges[k]);
    go(by > 0 ? Math.min(...seen.filter((t) => t > now + .5)) : Math.max(...seen.filter((t) => t < now - .5)));
  }
  function play(on) {
    if (on && now >= data.length) now = 0;
    playing = on; last = 0;
    playButton.textContent = on ? "Pause" : "Play";
    playButton.setAttribute("aria-pressed", String(on));
    if (on) requestAnimationFrame(frame); else show(true);
  }
  function frame(time) {
    if (!playing) return;
    if (last) now = Math.min(data.length, now + Math.min(100, time - last) * Number(speed.value));
    last = time;
    if (!still.matches || time - drawn > 500) { drawn = time; show(false); } // reduced motion: two pictures a second
    if (now >= data.length) play(false); else requestAnimationFrame(frame);
  }
  root.addEventListener("click", (event) => {
    const what = event.target.closest("[data-do]")?.dataset.do;
    if (what === "play") play(!playing); else if (what === "next") step(1); else if (what === "back") step(-1);
  });
  range.addEventListener("input", () => { playing && play(false); go(Number(range.value)); });
  stages.forEach((stage, k) => stage.querySelector("select")?.addEventListener("change", (event) => {
    const run = data.runs[(chosen[k] = Number(event.target.value))];
    stage.querySelector("figcaption").className = run.tone;
    stage.querySelector("canvas").setAttribute("aria-label", `What happens under ${run.name}; told in the text below`);
    show(!playing);
  }));
  root.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.tagName !== "BUTTON") play(!playing);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else return;
    event.preventDefault();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours(); show(false); });
  new ResizeObserver(() => show(false)).observe(root);
  document.addEventListener("visibilitychange", () => { if (document.hidden && playing) play(false); });
  colours();
  go(Math.min(15000, data.length / 4)); // of what came before nothing is drawn
})();
