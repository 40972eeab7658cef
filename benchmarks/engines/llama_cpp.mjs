// Greedy tokens, and tokens per second, of GGUF files in llama.cpp, on one thread; see llama_cpp.py.
//
//     node llama_cpp.mjs FOLDER_OF_NODE_MODULES INPUT.json
//
// INPUT.json: {"prompts": [[token, ...], ...], "count": tokens to write, "files": {name: file}, "rounds": n}
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , modules, input] = process.argv;
const entry = createRequire(join(modules, "package.json")).resolve("node-llama-cpp");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(entry));
const { prompts, count, files, rounds } = JSON.parse(readFileSync(input, "utf8"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const sequences = {};
for (const [name, file] of Object.entries(files)) {
  const model = await llama.loadModel({ modelPath: file });
  const context = await model.createContext({ threads: 1, contextSize: 512, sequences: 1 });
  sequences[name] = context.getSequence();
}
async function written(sequence, prompt) {
  await sequence.clearHistory();
  const tokens = [];
  const start = performance.now();
  let first = start;
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    if (tokens.length === 0) first = performance.now();
    tokens.push(token);
    if (tokens.length === count) break;
  }
  return { tokens, perSecond: (1000 * (tokens.length - 1)) / (performance.now() - first) };
}
const results = Object.fromEntries(Object.keys(files).map((name) => [name, { tokens: [], perSecond: [] }]));
for (const prompt of prompts)
  for (const name of Object.keys(files)) results[name].tokens.push((await written(sequences[name], prompt)).tokens);
for (let round = 0; round < rounds; round++)
  for (const name of Object.keys(files)) results[name].perSecond.push((await written(sequences[name], prompts[0])).perSecond);
process.stdout.write(JSON.stringify(results));
process.exit(0);
