// How answers are drawn. A setting that is not there is left to the server, which knows what suits the model.

/** The fields of the settings sheet; `name` is jllama's own, `api` that of a request. */
export const FIELDS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    hint: "0 always takes the likeliest token; higher is freer.",
  },
  {
    name: "top_p",
    label: "Top-p",
    min: 0.01,
    max: 1,
    step: 0.01,
    hint: "Draws from the likeliest tokens that make up this share.",
  },
  {
    name: "top_k",
    label: "Top-k",
    min: 0,
    max: 100000,
    step: 1,
    hint: "Draws from this many of the likeliest tokens; 0: from all.",
  },
  {
    name: "min_p",
    label: "Min-p",
    min: 0,
    max: 1,
    step: 0.01,
    hint: "Leaves out tokens less likely than this part of the likeliest.",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    min: 0.01,
    max: 10,
    step: 0.01,
    hint: "1 is off; 1.1 holds back what the conversation has already.",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    min: -2,
    max: 2,
    step: 0.1,
    hint: "0 is off; holds back what the answer has already.",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    min: -2,
    max: 2,
    step: 0.1,
    hint: "0 is off; the more often, the more it holds back.",
  },
  {
    name: "seed",
    label: "Seed",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    step: 1,
    hint: "The same seed, the same answers. Another answer to a question takes the next seed.",
  },
  {
    name: "max_new_tokens",
    api: "max_tokens",
    label: "Most tokens",
    min: 1,
    max: 10000000,
    step: 1,
    hint: "The longest answer; Continue goes on with one that was cut.",
  },
];

// What conversations of `jllama chat` may have besides, and the page only passes on.
const OTHERS = ["stop", "logit_bias", "ignore_eos"];

/** The part of a request's body that the settings make. `again` counts the answers that the question has. */
export function requestSettings(settings, again = 0) {
  const body = {};
  for (const { name, api } of FIELDS) {
    if (settings[name] !== undefined) body[api ?? name] = settings[name];
  }
  for (const name of OTHERS) if (settings[name] !== undefined) body[name] = settings[name];
  if (body.seed !== undefined) body.seed = (body.seed + again) % Number.MAX_SAFE_INTEGER;
  return body;
}

/** What a field holds, as a number or undefined; a text says what is wrong with it. */
export function parsed(field, typed) {
  const text = typed.trim();
  if (text === "") return { value: undefined };
  const value = Number(text.replace(",", "."));
  const sound = Number.isFinite(value) && value >= field.min && value <= field.max;
  if (!sound || (field.step === 1 && !Number.isInteger(value))) {
    const kind = field.step === 1 ? "a whole number" : "a number";
    return { wrong: `${field.label}: give ${kind} from ${field.min} to ${field.max}, or nothing` };
  }
  return { value };
}

/** Settings out of a file: those that are known and sound, without the ones that say nothing. */
export function readSettings(saved) {
  const settings = {};
  for (const { name } of FIELDS)
    if (typeof saved[name] === "number" && Number.isFinite(saved[name])) settings[name] = saved[name];
  const stops = Array.isArray(saved.stop)
    ? saved.stop.filter((text) => typeof text === "string" && text)
    : [];
  if (stops.length > 0) settings.stop = stops;
  const bias = saved.logit_bias;
  if (bias && typeof bias === "object" && !Array.isArray(bias) && Object.keys(bias).length > 0)
    settings.logit_bias = bias;
  if (saved.ignore_eos === true) settings.ignore_eos = true;
  return settings;
}
