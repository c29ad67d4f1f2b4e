// How fast an answer came and how many tokens it took, in a line.

import { rateOf } from "../data/answer.js";
import { element } from "./dom.js";

const number = new Intl.NumberFormat("en");

export function statistics(node, busy) {
  const facts = node.stats ? (busy ? growing(node.stats) : ended(node)) : [];
  return facts.filter(Boolean).map((fact) => element("span", {}, fact));
}

function growing(stats) {
  if (stats.first === null) return ["reading…"];
  return [speed(rateOf(stats)), tokens(stats.seen)];
}

function ended(node) {
  const { prompt, cached, generated, wait, rate } = node.stats;
  const again = cached ? `, ${number.format(cached)} reused` : "";
  return [
    speed(rate),
    generated !== undefined && tokens(generated),
    prompt !== undefined && `prompt ${number.format(prompt)}${again}`,
    wait !== null && wait !== undefined && `first in ${wait.toFixed(2)} s`,
    why(node),
  ];
}

const tokens = (count) => `${number.format(count)} ${count === 1 ? "token" : "tokens"}`;
const speed = (rate) => rate && `${rate < 100 ? rate.toFixed(1) : number.format(Math.round(rate))} tok/s`;

function why(node) {
  if (!node.cut || node.edited) return null;
  return node.finish === "length" ? "cut at the most tokens" : "stopped";
}
