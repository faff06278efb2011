// The vendors' own clients of JavaScript.
import { CohereClient, CohereClientV2, CohereError } from "cohere-ai";
import OpenAI, { AuthenticationError, BadRequestError } from "openai";

const { CLIENTS_URL: URL, CLIENTS_KEY: KEY } = process.env;
const QUERIES = ["I spilled my coffee", "it is dark in the hall"];

const get = async (path, body) => {
  const headers = { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" };
  const response = await fetch(URL + path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  return response.json();
};
const { total } = await get("/documents?limit=1");
const { documents: all } = await get(`/documents?limit=${total}`);
const ranked = {};
for (const query of QUERIES) ranked[query] = (await get("/query", { query, k: total })).results.map(hit => hit.id);
const best = new Set(QUERIES.map(query => ranked[query][0]));
const documents = [...all.filter(({ id }) => best.has(id)), ...all.filter(({ id }) => !best.has(id)).slice(0, 8)];
const ids = documents.map(({ id }) => id);
const texts = documents.map(({ title, text }) => [title, text].filter(Boolean).join("\n"));

function checkOrder(who, query, found) {
  const wanted = ranked[query].filter(id => ids.includes(id)).slice(0, found.length);
  if (!found.length || found.join() !== wanted.join()) throw new Error(`${who}: “${query}” finds ${found}, the server orders them ${wanted}`);
  console.log(`${who}: “${query}” ranks ${found.length} documents as the server does`);
}

function checkVectors(who, query, vector, vectors) {
  if (vectors.length !== ids.length) throw new Error(`${who}: ${vectors.length} vectors for ${ids.length} documents`);
  const scores = vectors.map(other => other.reduce((sum, x, i) => sum + x * vector[i], 0));
  checkOrder(who, query, ids.map((id, i) => [id, scores[i]]).sort((a, b) => b[1] - a[1]).map(([id]) => id));
}

async function refuses(who, kind, call, word) {
  const error = await call().then(() => undefined, error => error);
  if (!(error instanceof kind) || !String(error.message).includes(word)) throw new Error(`${who}: refused with ${error}, which is no ${kind.name} about “${word}”`);
  console.log(`${who}: refuses with ${error.constructor.name}: ${error.message.slice(0, 160)}`);
}

const openai = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, timeout: 120_000 });
const embedded = async (model, input) => (await openai.embeddings.create({ model, input })).data.map(({ embedding }) => embedding);
let vectors = await embedded("rabtriever-document", texts);
for (const query of QUERIES) checkVectors("openai (npm)", query, (await embedded("rabtriever-query", query))[0], vectors);
const names = [];
for await (const model of openai.models.list()) names.push(model.id);
if (!names.includes("rabtriever-query")) throw new Error(`openai (npm): the models are ${names}`);
await refuses("openai (npm)", BadRequestError, () => openai.embeddings.create({ model: "rabtriever", input: [] }), "input");
const stranger = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "wrong" });
await refuses("openai (npm)", AuthenticationError, () => stranger.models.list(), "key");

const v2 = new CohereClientV2({ token: KEY, environment: URL });
const embed = async (inputType, texts) => (await v2.embed({ model: "rabtriever", inputType, texts, embeddingTypes: ["float"] })).embeddings.float;
vectors = await embed("search_document", texts);
for (const query of QUERIES) {
  checkVectors("cohere-ai (npm) v2", query, (await embed("search_query", [query]))[0], vectors);
  const { results } = await v2.rerank({ model: "rabtriever", query, documents: texts, topN: 4 });
  checkOrder("cohere-ai (npm) v2 rerank", query, results.map(({ index }) => ids[index]));
}
const v1 = new CohereClient({ token: KEY, environment: URL });
const { results } = await v1.rerank({ model: "rabtriever", query: QUERIES[0], documents: texts, returnDocuments: true });
checkOrder("cohere-ai (npm) v1 rerank", QUERIES[0], results.map(({ index }) => ids[index]));
await refuses("cohere-ai (npm)", CohereError, () => v2.embed({ model: "rabtriever", inputType: "clustering", texts, embeddingTypes: ["float"] }), "input_type");
console.log("npm: ok");
