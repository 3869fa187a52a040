// Pictures of an exported model in a browser, with onnxruntime-web: what sample.py does, one picture at a time.

import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1;

export const NULL_LABEL = -1;
const NEGATIVE_SCALE = 1.3; // guidance scale of a negative prompt where the prior is the guide
const RAMP = Math.log(5);
const LETTERS = 12, LONGEST_NGRAM = 3, BUCKETS = 4096;
const UNSPACED = "\\u0e00-\\u0e7f\\u3040-\\u30ff\\u3400-\\u9fff"; // each letter is a token
const LETTER = "[\\p{L}\\p{N}_]"; // \w of Python
const WORD = new RegExp(`${LETTER}+(?:(?!${LETTER}|\\s).)* ?|(?:(?!${LETTER}|\\s).)+ ?|\\s`, "gsu");
const TOKEN = new RegExp(`[${UNSPACED}]|(?:(?![${UNSPACED}])${LETTER})+`, "gu");

export class Model {
  constructor(folder, about) {
    Object.assign(this, { folder, about, classes: about.classes, stages: about.stages, size: about.size });
    this.sessions = new Map();
  }

  static async open(folder) {
    const response = await fetch(new URL("calotype.json", folder));
    if (!response.ok) throw new Error(`calotype.json: ${response.status} ${response.statusText}`);
    return new Model(folder, await response.json());
  }

  // An image in [-1, 1], 3 x size x size. `noise(size, where, shape)` gives Gaussian noise; `step(done, total)` is
  // called after each step of a sampler.
  async sample({ label = NULL_LABEL, prompt = "", negative = "", noise, guidance, step = () => {} }) {
    [prompt, negative] = [cleaned(prompt), cleaned(negative)];
    let image = null, done = 0;
    const total = this.stages.reduce((sum, stage) => sum + stage.sigmas.length - 1, 0);
    for (const stage of this.stages) {
      const sampling = { ...stage.sampling };
      if (guidance !== undefined && stage === this.stages[0]) sampling.guidance = guidance;
      const known = await this.condition(stage, image, noise);
      const given = { label: labels(label), ...(await this.text(stage, prompt)), ...known };
      const without = { label: labels(NULL_LABEL), ...(await this.text(stage, negative)), ...known };
      const same = label === NULL_LABEL && prompt === negative;
      const nothing = { ...without, ...(await this.text(stage, "")) };
      const guided = this.guided(stage, sampling, given, without, nothing, same, negative !== "");
      const denoise = epsilonScaled(guided, sampling.epsilon_scaling, deviationOf(stage, known));
      const sigmas = [...stage.sigmas.filter((sigma) => sigma > stage.until), stage.until];
      const dims = [1, ...stage.shape];
      let draws = 0;
      const fresh = () => noise(stage.size, ["fresh", draws++], stage.shape);
      const start = noise(stage.size, ["start"], stage.shape), clean = known.low_res?.data;
      let noisy = start.map((value, at) => (clean ? clean[at] : 0) + sigmas[0] * value);
      const sampler = SAMPLERS[sampling.sampler];
      for await (noisy of sampler((state, sigma) => denoise(floats(state, dims), sigma), noisy, sigmas, fresh)) {
        step(++done, total);
      }
      if (sampling.final_denoising && !stage.until) noisy = await denoise(floats(noisy, dims), sampling.final_denoising);
      image = stage.until > 0 ? floats(noisy, dims) : await this.decode(stage, floats(noisy, dims));
    }
    return image.data;
  }

  async decode(stage, latents) {
    if (stage.graphs.decoder) return (await this.run(stage, "decoder", { latents })).images;
    return floats(latents.data.map((value) => Math.min(1, Math.max(-1, value))), latents.dims);
  }

  async condition(stage, images, noise) {
    if (images === null) return {};
    const augmentation = floats([stage.sampling.augmentation], [1]), truncated = stage.sampling.conditioning === "truncated";
    const added = truncated ? new Float32Array(images.data.length) : noise(stage.size, ["augmentation"], images.dims.slice(1));
    const known = await this.run(stage, "condition", { images, noise: floats(added, images.dims), augmentation });
    return { ...known, augmentation };
  }

  guided(stage, sampling, given, without, nothing, same, hasNegative) {
    const network = async (noisy, sigma, condition) => {
      const values = { ...condition, noisy, sigma: floats([sigma], [1]) };
      if (stage.graphs.prior) Object.assign(values, await this.run(stage, "prior", values));
      return [(await this.run(stage, "denoiser", values)).denoised.data, values.mean?.data];
    };
    const byPrior = async (noisy, sigma, condition, apart) => {
      const [estimate, mean] = await network(noisy, sigma, condition);
      const ramp = Math.min(1, Math.max(-1, Math.log(sigma / deviationOf(stage, condition)) / RAMP));
      const scale = 1 + (sampling.guidance - 1) * (1 + sampling.guidance_slope * ramp);
      const shift = apart ? sampling.prior_guidance : 0;
      const other = shift ? (await this.run(stage, "prior", { ...apart, noisy, sigma: floats([sigma], [1]) })).mean.data : mean;
      return mean.map((weak, at) => weak + scale * (estimate[at] - weak) + shift * (weak - other[at]));
    };
    return async (noisy, sigma) => {
      const inside = sampling.guidance_low < sigma && sigma <= sampling.guidance_high;
      const byNetwork = sampling.guide !== "prior";
      if (sampling.guidance === 1 || !inside || (byNetwork && same)) return (await network(noisy, sigma, given))[0];
      const strong = byNetwork ? (await network(noisy, sigma, given))[0] : await byPrior(noisy, sigma, given, same ? null : without);
      if (!byNetwork && !hasNegative) return strong;
      const weak = byNetwork ? (await network(noisy, sigma, without))[0] : await byPrior(noisy, sigma, without, nothing);
      const scale = byNetwork ? sampling.guidance : NEGATIVE_SCALE;
      return weak.map((value, at) => value + scale * (strong[at] - value));
    };
  }

  async text(stage, prompt) {
    const values = {};
    if (stage.graphs.text) {
      const width = this.about.text.width[stage.size], tokens = lettersOf(prompt, this.about.text.words);
      if (prompt === "") {
        values.words = floats(new Float32Array(width), [1, 1, width]);
        values.pooled = floats(new Float32Array(width), [1, width]);
      } else {
        const data = BigInt64Array.from(tokens.flat(), BigInt);
        Object.assign(values, await this.run(stage, "text", { tokens: new ort.Tensor("int64", data, [1, tokens.length, LETTERS]) }));
      }
      const count = values.words.dims[1];
      values.mask = new ort.Tensor("bool", new Uint8Array(count).fill(prompt === "" ? 0 : 1), [1, count]);
    }
    if (this.about.vocabulary !== null) {
      const own = ngramBuckets(prompt);
      values.bag = floats(this.about.vocabulary.map((bucket) => Number(own.has(bucket))), [1, this.about.vocabulary.length]);
    }
    return values;
  }

  async run(stage, graph, values) {
    const file = stage.graphs[graph];
    if (!this.sessions.has(file)) this.sessions.set(file, await ort.InferenceSession.create(new URL(file, this.folder).href));
    const session = this.sessions.get(file);
    return session.run(Object.fromEntries(session.inputNames.map((name) => [name, values[name]])));
  }
}

// -- Samplers: see sample.py for their papers -------------------------------------------------------------------------

async function* euler(denoise, noisy, sigmas) {
  for (const [sigma, next] of pairs(sigmas)) {
    const denoised = await denoise(noisy, sigma);
    yield (noisy = noisy.map((value, at) => value + (next - sigma) * ((value - denoised[at]) / sigma)));
  }
}

async function* heun(denoise, noisy, sigmas) {
  for (const [sigma, next] of pairs(sigmas)) {
    const denoised = await denoise(noisy, sigma);
    let slope = noisy.map((value, at) => (value - denoised[at]) / sigma);
    if (next > 0) {
      const ahead = noisy.map((value, at) => value + (next - sigma) * slope[at]), again = await denoise(ahead, next);
      slope = slope.map((value, at) => (value + (ahead[at] - again[at]) / next) / 2);
    }
    yield (noisy = noisy.map((value, at) => value + (next - sigma) * slope[at]));
  }
}

async function* dpmSolver(denoise, noisy, sigmas) {
  let before = null;
  for (const [sigma, next] of pairs(sigmas)) {
    const denoised = await denoise(noisy, sigma);
    let extrapolated = denoised;
    if (before !== null && next > 0) {
      const ratio = Math.log(sigma / next) / Math.log(before[0] / sigma), last = before[1];
      extrapolated = denoised.map((value, at) => value + (ratio / 2) * (value - last[at]));
    }
    yield (noisy = noisy.map((value, at) => extrapolated[at] + (next / sigma) * (value - extrapolated[at])));
    before = [sigma, denoised];
  }
}

async function* ancestral(denoise, noisy, sigmas, fresh) {
  for (const [sigma, next] of pairs(sigmas)) {
    const denoised = await denoise(noisy, sigma), ratio = (next / sigma) ** 2, noise = fresh();
    const spread = next * Math.sqrt(1 - ratio);
    yield (noisy = noisy.map((value, at) => denoised[at] + ratio * (value - denoised[at]) + spread * noise[at]));
  }
}

const SAMPLERS = { euler, heun, dpm_solver: dpmSolver, ancestral };

function epsilonScaled(denoise, amount, deviation) {
  if (!amount) return denoise;
  return async (noisy, sigma) => {
    const ratio = (sigma / deviation) ** 2, share = (amount * 4 * ratio) / (1 + ratio) ** 2;
    return (await denoise(noisy, sigma)).map((value, at) => value + share * (noisy.data[at] - value));
  };
}

function deviationOf(stage, condition) {
  const known = condition.deviation?.data ?? [0];
  return known.reduce((sum, each) => sum + Math.hypot(stage.sigma_data, each), 0) / known.length;
}

function pairs(sigmas) {
  return sigmas.slice(1).map((next, at) => [sigmas[at], next]);
}

// -- Tensors, noise and texts -----------------------------------------------------------------------------------------

function floats(data, dims) {
  return new ort.Tensor("float32", Float32Array.from(data), dims);
}

function labels(label) {
  return new ort.Tensor("int64", BigInt64Array.of(BigInt(label)), [1]);
}

// Gaussian noise of a seed and a picture's index (sfc32, Box and Muller): not that of sample.py, which is numpy's.
export function seeded(seed, index) {
  return (size, where, shape) => {
    const draw = uniform(`${seed} ${index} ${size} ${where.join(" ")}`);
    const values = new Float32Array(shape.reduce((product, side) => product * side, 1));
    return values.map(() => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw()));
  };
}

function uniform(key) {
  let [a, b, c, d] = [0, 1, 2, 3].map((part) => crc32(`${part} ${key}`));
  const next = () => {
    const sum = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + sum) | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let round = 0; round < 16; round++) next();
  return next;
}

export function cleaned(text) {
  return [...normalized(normalized(text).replace(/\p{C}/gu, ""))].slice(0, 2000).join("").trimEnd();
}

// In normal form C, on one line. Python splits at these spaces; \s lacks some of them, and has U+FEFF.
function normalized(text) {
  const spaces = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;
  return text.split(spaces).filter(Boolean).join(" ").normalize("NFC");
}

function lettersOf(text, most) {
  const rows = [];
  for (const [word] of text.toLowerCase().replaceAll("\0", " ").matchAll(WORD)) {
    const bytes = [...new TextEncoder().encode(word)];
    for (let start = 0; start < bytes.length; start += LETTERS) rows.push(bytes.slice(start, start + LETTERS));
  }
  return rows.slice(0, most).map((row) => [...row, ...Array(LETTERS - row.length).fill(0)]);
}

function ngramBuckets(caption) {
  const words = caption.toLowerCase().match(TOKEN) ?? [], hashes = new Set();
  for (let length = 1; length <= LONGEST_NGRAM; length++) {
    for (let at = 0; at < words.length; at++) hashes.add(crc32(words.slice(at, at + length).join(" ")) % BUCKETS);
  }
  return hashes;
}

function crc32(text) {
  let crc = -1;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
