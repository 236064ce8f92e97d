/**
 * Builds the fuzz targets of native/ and runs each for some seconds. Fails when one of them finds
 * something; what it found lies in build/fuzz/found/, and is run first the next time.
 *
 *   node test/native/fuzz.mjs [--seconds 20] [index | protocol | link]...
 *
 * Needs cmake, clang++-14 (or clang++) and its libFuzzer (Debian: libclang-rt-14-dev). What each target
 * has reached stays in build/fuzz/corpus/, so that runs add up.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

const TARGETS = ['index', 'protocol', 'link']
/** Longer inputs find nothing that shorter ones do not, and slow everything down. */
const INPUT_BYTES_MAX = 8192
const MEMORY_MB_MAX = 2048

const { values, positionals } = parseArgs({
  options: { seconds: { type: 'string', default: '20' } },
  allowPositionals: true,
})
const seconds = Number(values.seconds)
const targets = positionals.length > 0 ? positionals : TARGETS
if (!(seconds > 0) || !targets.every(target => TARGETS.includes(target)))
  fail(`usage: node test/native/fuzz.mjs [--seconds N] [${TARGETS.join(' | ')}]...`)

const root = join(import.meta.dirname, '..', '..')
const build = join(root, 'build', 'fuzz')
const found = join(build, 'found')
const compiler = ['clang++-14', 'clang++'].find(name => spawnSync(name, ['--version']).status === 0)
if (compiler === undefined || spawnSync('cmake', ['--version']).status !== 0)
  fail('cmake and clang++ are needed: apt-get install cmake clang-14 libclang-rt-14-dev')

mkdirSync(found, { recursive: true })
run('cmake', [
  ...['-S', join(root, 'native'), '-B', build, '-DBOBBIN_FUZZ=ON', '-DBOBBIN_SANITIZE=address,undefined'],
  ...[`-DCMAKE_CXX_COMPILER=${compiler}`, '-DCMAKE_BUILD_TYPE=None', '-DCMAKE_CXX_FLAGS=-O1 -g1 -D_GLIBCXX_ASSERTIONS'],
])
const programs = ['bobbin-fuzz-seeds', ...targets.map(target => `bobbin-fuzz-${target}`)]
const jobs = String(Math.min(4, availableParallelism()))
run('cmake', ['--build', build, '--parallel', jobs, ...programs.flatMap(program => ['--target', program])])
run(join(build, 'test', 'bobbin-fuzz-seeds'), [join(build, 'seeds')])

let failures = 0
for (const target of targets) {
  const corpus = join(build, 'corpus', target)
  mkdirSync(corpus, { recursive: true })
  const program = join(build, 'test', `bobbin-fuzz-${target}`)
  const before = readdirSync(found).filter(name => name.startsWith(`${target}-`))
  const known = before.map(name => join(found, name))
  if (known.length > 0 && !fuzz(target, program, known)) continue
  // A mount is kept from input to input: a leak shows at the end, not after each.
  const leaks = target === 'protocol' ? ['-detect_leaks=0'] : []
  const args = [
    ...leaks,
    `-max_total_time=${seconds}`,
    `-max_len=${INPUT_BYTES_MAX}`,
    '-timeout=10',
    '-print_final_stats=1',
  ]
  fuzz(target, program, [...args, corpus, join(build, 'seeds', target)])
}
process.exit(failures === 0 ? 0 : 1)

/** False: it found something. */
function fuzz(target, program, args) {
  const started = Date.now()
  const { status, stderr } = spawnSync(
    program,
    // What is logged goes nowhere; what libFuzzer and the sanitizers say comes all the same.
    ['-close_fd_mask=2', `-rss_limit_mb=${MEMORY_MB_MAX}`, `-artifact_prefix=${join(found, `${target}-`)}`, ...args],
    { encoding: 'utf8', maxBuffer: 2 ** 28 },
  )
  const number = name => Number(new RegExp(`stat::${name}:\\s+(\\d+)`).exec(stderr)?.[1] ?? 0)
  const took = ((Date.now() - started) / 1000).toFixed(1)
  const rate = number('average_exec_per_sec')
  const reached = /cov: (\d+)(?![\s\S]*cov:)/.exec(stderr)?.[1] ?? '?'
  if (status === 0) {
    if (rate > 0)
      say(
        `${target}: nothing found in ${took} s, ${number('number_of_executed_units')} inputs, ${rate}/s, ${reached} edges`,
      )
    return true
  }
  failures++
  say(stderr.slice(-8000))
  const newest = readdirSync(found)
    .filter(name => name.startsWith(`${target}-`))
    .sort((a, b) => statSync(join(found, b)).mtimeMs - statSync(join(found, a)).mtimeMs)[0]
  say(
    `${target}: it fails after ${took} s; again with\n  ${program} ${newest === undefined ? '' : join(found, newest)}`,
  )
  return false
}

function run(program, args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (status !== 0) fail(`${program} ${args.join(' ')}\n${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}`)
}

function say(text) {
  process.stdout.write(`${text}\n`)
}

function fail(text) {
  process.stderr.write(`${text}\n`)
  process.exit(1)
}
