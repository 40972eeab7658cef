// Reads exported folders with transformers.js in Node, and writes one line of JSON a folder and precision.
//
//     node read_with_transformers_js.mjs PACKAGE MODELS REQUESTS
//
// PACKAGE is the file of transformers.js to import, MODELS the parent of the folders, REQUESTS a list in JSON:
// [{"folder": "...", "kind": "answer" | "write" | "write-from", "dtype": "fp32", "texts": ["...", "..."]}, ...]

const [packageFile, models, requests] = process.argv.slice(2);
const js = await import(packageFile);
js.env.allowRemoteModels = false;
js.env.localModelPath = models;

const AUTO = {
  answer: js.AutoModelForQuestionAnswering,
  write: js.AutoModelForCausalLM,
  "write-from": js.AutoModelForSeq2SeqLM,
};

for (const { folder, kind, dtype, texts } of JSON.parse(requests)) {
  const tokenizer = await js.AutoTokenizer.from_pretrained(folder);
  const model = await AUTO[kind].from_pretrained(folder, { dtype });
  const inputs = tokenizer(texts[0], texts.length > 1 ? { text_pair: texts[1] } : {});
  let found;
  if (kind.startsWith("write")) {
    const written = await model.generate({ ...inputs, max_new_tokens: 8, do_sample: false });
    found = written.tolist()[0].map(Number);
  } else {
    const outputs = await model(inputs);
    found = [outputs.start_logits.tolist()[0], outputs.end_logits.tolist()[0]];
  }
  console.log(JSON.stringify(found));
}
