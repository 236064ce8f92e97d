/** What Bobbin runs with: licences, an inventory (CycloneDX), and whether a package has a known hole (npm audit). */
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'
import t from 'tap'
import { runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { skipTest } from '../support/skips.js'

const root = fileURLToPath(new URL('../../../', import.meta.url))

interface Locked {
  readonly name?: string
  readonly version: string
  readonly license?: string
  readonly integrity?: string
  readonly resolved?: string
  readonly dev?: boolean
  readonly optional?: boolean
}
const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
  packages: Record<string, Locked>
}
const runtime = Object.entries(packages)
  .filter(([path, { dev }]) => path !== '' && !dev)
  .map(([path, locked]) => ({ path, ...locked, name: locked.name ?? path.split('node_modules/').at(-1)! }))
const ids = [...new Set(runtime.map(({ name, version }) => `${name}@${version}`))].sort()

/**
 * What may be shipped beside Apache-2.0. MPL-2.0 asks that changes to its own files are published: none is changed here.
 * A licence that is not here, or none, is a question for a person.
 */
const LICENCES = ['Apache-2.0', 'MIT', 'ISC', '0BSD', 'BSD-2-Clause', 'BSD-3-Clause', 'BlueOak-1.0.0', 'MPL-2.0']

t.test(
  'every package that Bobbin runs with has a licence that is allowed, and the one that the lock file names',
  async t => {
    t.ok(runtime.length > 100)
    for (const { name, version, path, license, optional } of runtime) {
      t.ok(LICENCES.includes(license ?? 'none'), `${name}@${version}: ${license}`)
      const manifest = join(root, path, 'package.json')
      // For another platform.
      if (optional && !existsSync(manifest)) continue
      t.equal(JSON.parse(readFileSync(manifest, 'utf8')).license, license, `${path} says the same itself`)
    }
  },
)

t.test('every package that Bobbin runs with is pinned by a hash', async t => {
  for (const { path, integrity } of runtime) t.match(integrity, /^sha512-/, path)
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  for (const [name, version] of Object.entries(dependencies)) t.match(version, /^\d+\.\d+\.\d+$/, name)
})

interface Bom {
  readonly bomFormat: string
  readonly specVersion: string
  readonly serialNumber: string
  readonly version: number
  readonly metadata: { readonly component: { readonly 'bom-ref': string; readonly name: string } }
  readonly components: readonly {
    readonly 'bom-ref': string
    readonly type: string
    readonly name: string
    readonly version: string
    readonly purl: string
    readonly hashes: readonly { readonly alg: string; readonly content: string }[]
    readonly licenses: readonly unknown[]
  }[]
  readonly dependencies: readonly { readonly ref: string; readonly dependsOn: readonly string[] }[]
}

t.test('the inventory is CycloneDX, and has each package of the lock file once', async t => {
  const path = join(root, 'build', 'sbom.cdx.json')
  const { status, stderr } = await runProgram(process.execPath, [join(root, '.ci/sbom.mjs'), path])
  t.equal(status, 0, stderr)
  const bom = JSON.parse(readFileSync(path, 'utf8')) as Bom
  t.match(bom, {
    bomFormat: 'CycloneDX',
    specVersion: /^1\.[5-9]$/,
    version: 1,
    metadata: { component: { name: 'bobbin' } },
  })
  t.match(bom.serialNumber, /^urn:uuid:[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/)
  t.same(bom.components.map(({ name, version }) => `${name}@${version}`).sort(), ids)
  const refs = [bom.metadata.component['bom-ref'], ...bom.components.map(component => component['bom-ref'])]
  t.equal(new Set(refs).size, refs.length, 'each is referred to by a name of its own')
  for (const { type, purl, hashes, licenses, name } of bom.components) {
    t.match({ type, purl }, { type: 'library', purl: /^pkg:npm\/\S+@\S+$/ }, name)
    t.match(hashes, [{ alg: 'SHA-512', content: /^[0-9a-f]{128}$/ }], name)
    t.ok(licenses.length > 0, name)
  }
  t.same(bom.dependencies.map(({ ref }) => ref).sort(), [...refs].sort())
  for (const { dependsOn } of bom.dependencies) t.ok(dependsOn.every(ref => refs.includes(ref)))
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const own = bom.dependencies.find(({ ref }) => ref === refs[0])!
  for (const [name, version] of Object.entries(dependencies)) t.ok(own.dependsOn.includes(`${name}@${version}`), name)
})

/** npm's answer as JSON, and how it ended. */
async function audit(registry?: string) {
  const folder = testFolder(t)
  const more = registry === undefined ? [] : ['--registry', registry, '--fetch-retries', '0']
  const args = ['--prefix', root, 'audit', '--omit=dev', '--json', '--cache', folder, ...more]
  const { status, stdout, stderr } = await runProgram('npm', args)
  try {
    return { status, stderr, answer: JSON.parse(stdout) as Record<string, unknown> & { statusCode?: number } }
  } catch {
    return { status, stderr, answer: {} }
  }
}

/** Registries that only hand out packages answer so: they have no audits at all. Whatever else goes wrong is a failure. */
const NO_AUDITS = [404, 405, 501]

t.test('no package that Bobbin runs with has a known vulnerability (npm audit)', async t => {
  const { status, stderr, answer } = await audit()
  if (NO_AUDITS.includes(answer.statusCode ?? 0))
    return skipTest(t, `the registry of this machine has no audits (HTTP ${answer.statusCode})`)
  t.equal(status, 0, `${stderr}\n${JSON.stringify(answer.vulnerabilities ?? answer, undefined, 1)}`)
  t.match(answer, { auditReportVersion: 2 })
})

t.test('npm audit asks about every package that Bobbin runs with, and fails of a hole in one', async t => {
  let asked: Record<string, string[]> = {}
  const advisory = {
    id: 1,
    url: 'https://example.invalid/1',
    title: 'a hole',
    severity: 'high',
    vulnerable_versions: '>=0.0.0',
    cwe: [],
    cvss: { score: 9, vectorString: null },
  }
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const isBulk = request.url?.endsWith('/advisories/bulk')
    if (!isBulk) return void response.writeHead(404).end('{}')
    const body = Buffer.concat(chunks)
    asked = JSON.parse((request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body).toString())
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify({ yaml: [advisory] }))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { status, answer } = await audit(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  t.equal(status, 1)
  t.match(answer, { vulnerabilities: { yaml: { severity: 'high' } } })
  const named = Object.entries(asked).flatMap(([name, versions]) => versions.map(version => `${name}@${version}`))
  t.same(
    ids.filter(id => !named.includes(id)),
    [],
    'none is left out',
  )
})
