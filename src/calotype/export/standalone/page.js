// The page: what is asked for, the pictures, and how long they took.

import { Model, NULL_LABEL, cleaned, seeded } from "./model.js";

const part = (name) => document.getElementById(name);
const state = part("state");

function paint(image, size) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const pixels = new ImageData(size, size), area = size * size;
  for (let at = 0; at < area; at++) {
    for (let channel = 0; channel < 3; channel++) {
      pixels.data[4 * at + channel] = Math.round((image[channel * area + at] + 1) * 127.5);
    }
    pixels.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.title = "Click to save";
  return canvas;
}

function save(canvas, name) {
  canvas.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

async function draw(model) {
  const count = Math.max(1, Math.min(64, Number(part("count").value) || 1)), seed = Number(part("seed").value) || 0;
  const prompt = cleaned(part("prompt").value), negative = cleaned(part("negative").value), chosen = part("label").value;
  const guidance = Number(part("guidance").value), begin = performance.now();
  part("pictures").replaceChildren();
  for (let index = 0; index < count; index++) {
    const inTurn = model.classes.length && !prompt ? index % model.classes.length : NULL_LABEL;
    const label = chosen === "" ? inTurn : Number(chosen);
    const step = (done, total) => (part("progress").value = (index + done / total) / count);
    const image = await model.sample({ label, prompt, negative, guidance, noise: seeded(seed, index), step });
    const canvas = paint(image, model.size);
    canvas.addEventListener("click", () => save(canvas, `${seed}-${index}.png`));
    part("pictures").append(canvas);
    state.textContent = `${index + 1} of ${count}, ${((performance.now() - begin) / 1000 / (index + 1)).toFixed(2)} s a picture`;
    await new Promise(requestAnimationFrame);
  }
}

function offer(model) {
  const choices = [["", "each in turn"], ...model.classes.map((name, index) => [String(index), name])];
  part("label").replaceChildren(...choices.map(([value, name]) => new Option(name, value)));
  part("labels").hidden = model.classes.length === 0;
  part("texts").hidden = model.about.text === null;
  part("guidance").value = model.stages[0].sampling.guidance;
}

try {
  const model = await Model.open(new URL("./", import.meta.url));
  globalThis.calotype = { model, ready: true };
  offer(model);
  state.textContent = "";
  part("request").addEventListener("submit", async (event) => {
    event.preventDefault();
    part("go").disabled = true;
    try {
      await draw(model);
    } catch (error) {
      state.textContent = `That did not work: ${error.message}`;
    }
    part("go").disabled = false;
  });
  part("go").disabled = false;
} catch (error) {
  state.textContent = `The model cannot be opened: ${error.message}`;
}
