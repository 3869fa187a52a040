"""The exported page in Chromium: what it draws from noise that is given, and whether its form works."""

import json
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TRIAL = """<!doctype html><title>trial</title><iframe id="page" src="index.html" width="900" height="700"></iframe>
<script type="module">
import { Model } from "./model.js";
const ask = (path) => {
  const asked = new XMLHttpRequest();
  asked.open("GET", path, false);
  asked.send();
  return JSON.parse(asked.responseText);
};
const noise = (size, where, shape) => Float32Array.from(ask(`/noise?size=${size}&where=${where}&shape=${shape}`));
const send = (result) => fetch("/result", { method: "POST", body: JSON.stringify(result) });
const until = async (test) => { while (!test()) await new Promise((go) => setTimeout(go, 50)); };
try {
  const { prompt, negative } = ask("/request"), model = await Model.open(new URL("./", import.meta.url));
  const images = [];
  images.push([...await model.sample({ label: 1, noise })]);
  images.push([...await model.sample({ prompt, negative, noise })]);
  const page = document.getElementById("page"), inside = (name) => page.contentDocument.getElementById(name);
  await until(() => page.contentWindow.calotype?.ready && !inside("go").disabled);
  inside("count").value = 2;
  inside("prompt").value = prompt;
  inside("guidance").value = 1.25;  // a form with a value that it does not take sends nothing
  inside("go").click();
  await until(() => inside("pictures").children.length === 2 && !inside("go").disabled);
  const canvas = inside("pictures").children[1];
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  await send({ images, side: canvas.width, colours: new Set(pixels).size, state: inside("state").textContent });
} catch (error) {
  await send({ error: String(error.stack ?? error) });
}
</script>"""


def served(folder, noise, request):
    """A server of the folder, and of the trial; what it is sent is in `results`."""
    results, arrived = [], threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

        def answer(self, content, kind):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content.encode())

        def do_GET(self):
            address = urlsplit(self.path)
            if address.path == "/trial.html":
                self.answer(TRIAL, "text/html")
            elif address.path == "/request":
                self.answer(json.dumps(request), "application/json")
            elif address.path == "/noise":
                asked = {name: values[0].split(",") for name, values in parse_qs(address.query).items()}
                where = tuple(int(part) if part.isdigit() else part for part in asked["where"])
                values = noise(0, int(asked["size"][0]), where, tuple(map(int, asked["shape"])))
                self.answer(json.dumps(values.flatten().tolist()), "application/json")
            else:
                super().do_GET()

        def do_POST(self):
            results.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer("{}", "application/json")
            arrived.set()

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler), results, arrived


def drawn_in_browser(folder, noise, request, profile):
    """What the trial sends: pictures in [-1, 1] of label 1 and of the prompt, and what the form has drawn."""
    server, results, arrived = served(folder, noise, request)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/trial.html"
    browser = subprocess.Popen(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", address],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert arrived.wait(300), "the page sent nothing"
    finally:
        browser.terminate()
        browser.wait(30)
        server.shutdown()
    result = results[0]
    assert "error" not in result, result["error"]
    return result
