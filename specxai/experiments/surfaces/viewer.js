// A mesh that can be turned, drawn into an image with a depth buffer.  `specxaiViewer(root, scene)` starts it on an
// element; `specxaiDraw` is the rasteriser alone.
function specxaiDecode(text, Kind) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new Kind(bytes.buffer);
}

function specxaiColour(value) {  // blue − white − red, the ends of matplotlib's RdBu_r
  const stops = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]];
  const at = (Math.max(-1, Math.min(1, value)) + 1) * 2, low = Math.min(3, Math.floor(at)), part = at - low;
  return stops[low].map((a, i) => a + part * (stops[low + 1][i] - a));
}

// points: Float32Array 3·V as x, y, z of every vertex; faces: Uint16Array 3·F; colours: Float32Array 3·V in 0…255.
function specxaiDraw(pixels, width, height, points, faces, colours, turn) {
  const depth = new Float32Array(width * height).fill(-Infinity), count = points.length / 3;
  const seen = new Float32Array(points.length), normals = new Float32Array(points.length);
  const [ca, sa, ce, se] = [Math.cos(turn.azimuth), Math.sin(turn.azimuth), Math.cos(turn.elevation),
                            Math.sin(turn.elevation)];
  const rows = [[-sa, ca, 0], [-se * ca, -se * sa, ce], [ce * ca, ce * sa, se]];  // right, up, towards the viewer
  for (let i = 0; i < count; i++)
    for (let r = 0; r < 3; r++)
      seen[3 * i + r] = rows[r][0] * points[3 * i] + rows[r][1] * points[3 * i + 1] + rows[r][2] * points[3 * i + 2];
  const flat = new Float32Array(faces.length);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]], u = [], v = [];
    for (let r = 0; r < 3; r++) { u.push(seen[b + r] - seen[a + r]); v.push(seen[c + r] - seen[a + r]); }
    const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    const size = Math.hypot(...n) || 1;
    for (let r = 0; r < 3; r++) {
      flat[f + r] = n[r] / size;
      for (const corner of [a, b, c]) normals[corner + r] += n[r];
    }
  }
  const lamps = [[-0.369, 0.696, 0.615, 0.46], [0.784, 0.196, 0.588, 0.14], [0, 0, 1, 0.08]];
  const light = n => lamps.reduce((sum, l) => sum + l[3] * Math.max(0, n[0] * l[0] + n[1] * l[1] + n[2] * l[2]), 0.44);
  const scale = turn.zoom * Math.min(width, height), x = new Float32Array(count), y = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    x[i] = width / 2 + scale * seen[3 * i];
    y[i] = height / 2 - scale * seen[3 * i + 1];
    const size = Math.hypot(normals[3 * i], normals[3 * i + 1], normals[3 * i + 2]) || 1;
    for (let r = 0; r < 3; r++) normals[3 * i + r] /= size;
  }
  pixels.fill(0);
  for (let f = 0; f < faces.length; f += 3) {
    if (flat[f + 2] <= 0) continue;  // seen from behind
    const t = [faces[f], faces[f + 1], faces[f + 2]], own = [flat[f], flat[f + 1], flat[f + 2]];
    const bright = t.map(i => {
      const n = [normals[3 * i], normals[3 * i + 1], normals[3 * i + 2]];
      return light(n[0] * own[0] + n[1] * own[1] + n[2] * own[2] < 0.766 ? own : n);  // an edge stays an edge
    });
    const [x0, x1, x2] = t.map(i => x[i]), [y0, y1, y2] = t.map(i => y[i]), z = t.map(i => seen[3 * i + 2]);
    const area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0);
    if (!area) continue;
    const left = Math.max(0, Math.floor(Math.min(x0, x1, x2))), right = Math.min(width - 1, Math.max(x0, x1, x2));
    const top = Math.max(0, Math.floor(Math.min(y0, y1, y2))), bottom = Math.min(height - 1, Math.max(y0, y1, y2));
    for (let row = top; row <= bottom; row++)
      for (let column = left; column <= right; column++) {
        const px = column + 0.5, py = row + 0.5;
        const a = ((x1 - px) * (y2 - py) - (x2 - px) * (y1 - py)) / area;
        const b = ((x2 - px) * (y0 - py) - (x0 - px) * (y2 - py)) / area, c = 1 - a - b;
        if (a < -1e-6 || b < -1e-6 || c < -1e-6) continue;
        const near = a * z[0] + b * z[1] + c * z[2], at = row * width + column;
        if (near <= depth[at]) continue;
        depth[at] = near;
        for (let r = 0; r < 3; r++)
          pixels[4 * at + r] = a * bright[0] * colours[3 * t[0] + r] + b * bright[1] * colours[3 * t[1] + r]
            + c * bright[2] * colours[3 * t[2] + r];
        pixels[4 * at + 3] = 255;
      }
  }
}

function specxaiColours(map, shades) {
  const colours = new Float32Array(3 * shades.length);
  for (let i = 0; i < shades.length; i++) {
    const colour = map ? specxaiColour(map[i] / 127) : [238, 240, 243];
    const shade = map ? 1 - (1 - shades[i] / 255) * 0.45 : shades[i] / 255;
    for (let r = 0; r < 3; r++) colours[3 * i + r] = colour[r] * shade;
  }
  return colours;
}

function specxaiViewer(root, scene) {
  const faces = specxaiDecode(scene.faces, Uint16Array), shades = specxaiDecode(scene.shades, Uint8Array);
  const shapes = scene.shapes.map(s => ({...s, points: specxaiDecode(s.points, Float32Array),
                                         maps: s.maps.map(m => specxaiDecode(m.values, Int8Array))}));
  const canvas = root.querySelector("canvas"), context = canvas.getContext("2d");
  const [shape, map] = root.querySelectorAll("select"), turn = {...scene.turn}, start = {...scene.turn};
  let queued = false;
  const draw = () => {
    queued = false;
    const s = shapes[shape.selectedIndex], chosen = map.selectedIndex - 1;
    const image = context.createImageData(canvas.width, canvas.height);
    specxaiDraw(image.data, canvas.width, canvas.height, s.points, faces,
                specxaiColours(chosen < 0 ? null : s.maps[chosen], shades), turn);
    context.putImageData(image, 0, 0);
    root.querySelector("output").textContent = chosen < 0 ? "" : "colours end at ± " + s.maps_half[chosen];
  };
  const ask = () => { if (!queued) { queued = true; requestAnimationFrame(draw); } };
  const fill = () => {
    const before = Math.max(map.selectedIndex, 0);
    map.replaceChildren();
    for (const name of ["the shape alone", ...shapes[shape.selectedIndex].maps_name]) {
      const option = document.createElement("option");
      option.textContent = name;
      map.append(option);
    }
    map.selectedIndex = root.dataset.started ? before : 1;
    root.dataset.started = "yes";
    ask();
  };
  for (const s of shapes) {
    const option = document.createElement("option");
    option.textContent = s.name;
    shape.append(option);
  }
  shape.addEventListener("change", fill);
  map.addEventListener("change", ask);
  canvas.addEventListener("pointerdown", e => canvas.setPointerCapture(e.pointerId));
  canvas.addEventListener("pointermove", e => {
    if (!canvas.hasPointerCapture(e.pointerId)) return;
    turn.azimuth -= e.movementX * 0.008;
    turn.elevation = Math.max(-1.5, Math.min(1.5, turn.elevation + e.movementY * 0.008));
    ask();
  });
  canvas.addEventListener("wheel", e => {
    e.preventDefault();
    turn.zoom = Math.max(0.1, Math.min(6, turn.zoom * Math.exp(-e.deltaY * 0.001)));
    ask();
  }, {passive: false});
  canvas.addEventListener("dblclick", () => { Object.assign(turn, start); ask(); });
  canvas.addEventListener("keydown", e => {
    const step = {ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1]}[e.key];
    if (!step) return;
    e.preventDefault();
    turn.azimuth += step[0];
    turn.elevation = Math.max(-1.5, Math.min(1.5, turn.elevation + step[1]));
    ask();
  });
  fill();
}
