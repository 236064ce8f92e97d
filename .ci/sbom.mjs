/**
 * Writes which packages Bobbin runs with, as CycloneDX: build/sbom.cdx.json. Plain Node.js, from package-lock.json alone.
 *
 *   node .ci/sbom.mjs [FILE]
 *
 * npm writes the document, and here it is reduced to what the lock file does not mark as `dev`. npm's own `--omit dev` leaves
 * out whatever tests need as well (npm 11.19: lru-cache, uuid, yaml, debug, ms, semver), which would be missing where it counts.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const target = process.argv[2] ?? join(root, 'build', 'sbom.cdx.json')

const args = ['sbom', '--sbom-format', 'cyclonedx', '--sbom-type', 'application', '--package-lock-only']
const { status, stdout, stderr } = spawnSync('npm', args, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 26 })
if (status !== 0) throw new Error(`npm ${args.join(' ')} ended with ${status}: ${stderr}`)

const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'))
const runtime = new Set(
  Object.entries(packages)
    .filter(([path, { dev }]) => path !== '' && !dev)
    .map(([path, { name, version }]) => `${name ?? path.split('node_modules/').at(-1)}@${version}`),
)
const document = JSON.parse(stdout)
const isRuntime = ref => runtime.has(ref) || ref === document.metadata.component['bom-ref']
document.metadata.component.name = packages[''].name
document.components = document.components.filter(component => isRuntime(component['bom-ref']))
document.dependencies = document.dependencies
  .filter(({ ref }) => isRuntime(ref))
  .map(({ ref, dependsOn }) => ({ ref, dependsOn: dependsOn.filter(isRuntime) }))

mkdirSync(dirname(target), { recursive: true })
writeFileSync(target, `${JSON.stringify(document, undefined, 2)}\n`)
console.log(`${target}: ${document.components.length} packages`)
