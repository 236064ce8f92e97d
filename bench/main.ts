/** `npm run bench -- NAME [--flags]`: the benchmarks, each a file of its own. */
const benchmarks: Readonly<Record<string, () => Promise<{ run(): Promise<void> }>>> = {
  'access-log': () => import('./access-log.js'),
  crash: () => import('./crash.js'),
  loader: () => import('./loader.js'),
  mount: () => import('./mount.js'),
  record: () => import('./record.js'),
  push: () => import('./push.js'),
  quilt3: () => import('./quilt3.js'),
}

const name = process.argv[2] ?? ''
const load = benchmarks[name]
if (load === undefined) {
  process.stderr.write(`usage: npm run bench -- NAME    (${Object.keys(benchmarks).join(', ')})\n`)
  process.exit(2)
}
await (await load()).run()
