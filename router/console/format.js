// Figures as people read them. Whatever is no number is a dash.

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

export function count(value) {
  return known(value) ? grouped.format(value) : DASH;
}

/** `1,290`, `8.4`, `0.52`: tokens per second and the like. */
export function rate(value) {
  if (!known(value)) return DASH;
  if (value === 0) return "0";
  if (Math.abs(value) < 1) return value.toFixed(2);
  return Math.abs(value) < 10 ? value.toFixed(1) : grouped.format(value);
}

export function percent(share) {
  if (!known(share)) return DASH;
  return share > 0 && share < 0.01 ? "<1 %" : `${Math.round(share * 100)} %`;
}

/** `850 µs`, `4.1 ms`, `32 ms`, `2.4 s`, `3 min 5 s`, `2 h 4 min`. */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.01) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const [big, many, small, few] =
    whole < 3600
      ? ["min", Math.floor(whole / 60), "s", whole % 60]
      : whole < 86400
        ? ["h", Math.floor(whole / 3600), "min", Math.floor((whole % 3600) / 60)]
        : ["d", Math.floor(whole / 86400), "h", Math.floor((whole % 86400) / 3600)];
  return few ? `${many} ${big} ${few} ${small}` : `${many} ${big}`;
}

/** Bits per second from bytes per second: what links are sold by. */
export function bandwidth(bytesPerS) {
  if (!known(bytesPerS) || bytesPerS <= 0) return DASH;
  const bits = bytesPerS * 8;
  for (const [unit, size] of [["Gbit/s", 1e9], ["Mbit/s", 1e6], ["kbit/s", 1e3]]) {
    if (bits >= size) return `${(bits / size).toFixed(bits >= 100 * size ? 0 : 1)} ${unit}`;
  }
  return `${Math.round(bits)} bit/s`;
}

export function time(unixS) {
  return known(unixS) ? clock.format(new Date(unixS * 1000)) : DASH;
}

export function date(unixS) {
  return known(unixS) ? day.format(new Date(unixS * 1000)) : DASH;
}

/** `0–9` of a half-open range. */
export function layers(first, end) {
  return end - first === 1 ? String(first) : `${first}–${end - 1}`;
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
