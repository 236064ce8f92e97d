/** Which outputs of a run are its result, and when they count as equal: real processes, on records that this machine made. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { testFolder } from '../support/daemon.js'
import { repository } from '../support/parts.js'
import { ALLOW_CODE, ALLOW_HOST, exitOf, factsOf, Runs, statementOf } from '../support/runs.js'
import { endUnlessMounts } from '../support/skips.js'

t.setTimeout(300_000)
endUnlessMounts(t)

/** Weights that a file from outside of the run moves, as a GPU moves them, and a log that is never the same. */
const TRAIN = `
import json, os, struct, time
noise = float(open(os.environ['NOISE']).read())
out = os.environ['BOBBIN_OUTPUT']
def save(name, tensors):
    header, data = {}, b''
    for key, values in tensors.items():
        bytes = struct.pack('<%df' % len(values), *values)
        header[key] = {'dtype': 'F32', 'shape': [len(values)], 'data_offsets': [len(data), len(data) + len(bytes)]}
        data += bytes
    text = json.dumps(header).encode()
    open(os.path.join(out, name), 'wb').write(struct.pack('<Q', len(text)) + text + data)
os.makedirs(os.path.join(out, 'logs'))
save('model.safetensors', {'w': [1.0, 2.0 + noise], 'b': [0.5]})
save('frozen.safetensors', {'w': [1.0]})
open(os.path.join(out, 'logs', 'log.txt'), 'w').write('took %f s' % time.time())
`
const folder = testFolder(t)
const noise = join(folder, 'noise')
const runs = new Runs(folder)
t.teardown(() => runs.cli.try('stop', '--force'))
await runs.commit({ 'train.py': TRAIN })
let count = 0

/** As a user runs it once, with this noise. */
async function recorded(...options: string[]) {
  writeFileSync(noise, '0')
  const output = ['--output', join(folder, `out-${count++}`)]
  return await runs.run(
    '--host',
    '--no-loader',
    ...output,
    ...options,
    '-e',
    `NOISE=${noise}`,
    '--',
    'python3',
    'train.py',
  )
}

async function again(run: { readonly runId: string }, withNoise: string, ...options: string[]) {
  writeFileSync(noise, withNoise)
  const { status, stdout, stderr } = await runs.bobbin(
    ...['reproduce', run.runId, ...ALLOW_HOST, ...ALLOW_CODE, '--json', ...options],
  )
  return { status, stderr, answer: stdout === '' ? undefined : JSON.parse(stdout) }
}

t.test('the outputs that --outputs names decide, and the others are listed (S121)', async t => {
  const run = await recorded('--outputs', '*.safetensors')
  t.same(factsOf(run).outputGlobs, ['*.safetensors'])
  t.same(statementOf(run).predicate.buildDefinition.internalParameters.outputGlobs, ['*.safetensors'])
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
  const same = await again(run, '0')
  t.equal(same.status, 0, same.stderr)
  t.match(same.answer, {
    equal: true,
    outputs: [
      { path: 'frozen.safetensors', change: 'same', decides: true },
      { path: 'logs/log.txt', change: 'changed', decides: false },
      { path: 'model.safetensors', change: 'same', decides: true },
    ],
  })
  t.same(factsOf(same.answer).outputGlobs, ['*.safetensors'], 'the new record has it, too')
  const shown = await runs.bobbin('reproduce', run.runId, ...ALLOW_HOST, ...ALLOW_CODE)
  t.match(shown.stdout, /^ {2}same {2}frozen\.safetensors\n {2}same {2}model\.safetensors\nnot part of the result/)
  t.match(shown.stdout, / {2}changed {2}logs\/log\.txt\nreproduced: 2 outputs are equal, exit code 0/)
  t.equal((await again(run, '0', '--outputs', '**')).status, 13, 'the flag goes before the record')
  const negated = await again(run, '0', '--outputs', '!logs/**')
  t.match(negated, { status: 0, answer: { outputs: [{ decides: true }, { decides: false }, { decides: true }] } })
  const nothing = await again(run, '0', '--outputs', '*.pt')
  t.match(nothing, {
    status: 2,
    stderr: /no output of the record matches --outputs \*\.pt: it has frozen\.safetensors, logs/,
  })
})

t.test('a run without --outputs, and a record from before there was one, are their outputs as a whole', async t => {
  const run = await recorded()
  t.equal(factsOf(run).outputGlobs, undefined)
  t.equal((await again(run, '0')).status, 13, 'the log differs')
  t.equal((await again(run, '0', '--outputs', 'model.*', '--outputs', 'frozen.*')).status, 0)
})

t.test('tensors that are no further apart than --tolerance are equal (S122)', async t => {
  const run = await recorded('--outputs', '*.safetensors')
  const apart = await again(run, '0.25')
  t.equal(apart.status, 13)
  const [frozen, , model] = apart.answer.outputs
  t.match(frozen, { change: 'same' })
  t.equal(frozen.tensors, undefined)
  t.same(model.tensors, {
    format: 'safetensors',
    names: 2,
    equal: 1,
    largest: 0.25,
    differences: [{ name: 'w', change: 'changed', recorded: 'float32[2]', found: 'float32[2]', largest: 0.25 }],
  })
  t.equal((await again(run, '0.25', '--tolerance', '0.1')).status, 13)
  t.match(await again(run, '0.25', '--tolerance', '0.25'), {
    status: 0,
    answer: { equal: true, outputs: [{}, {}, { change: 'changed', isWithinTolerance: true }] },
  })
  t.match(await again(run, 'nan', '--tolerance', '1e9'), {
    status: 13,
    answer: { outputs: [{}, {}, { tensors: { largest: null } }] },
  })
  t.match(await again(run, '0', '--tolerance', 'much'), { status: 2, stderr: /--tolerance much: say how far/ })
  const model0 = join(factsOf(run).outputDir!, 'model.safetensors')
  writeFileSync(model0, Buffer.concat([readFileSync(model0), Buffer.from('x')]))
  t.match(await again(run, '0.25', '--tolerance', '1'), {
    status: 13,
    answer: { outputs: [{}, {}, { tensors: /not here any more/ }] },
  })
  rmSync(model0)
  t.match(await again(run, '0.25', '--tolerance', '1'), {
    status: 13,
    answer: { outputs: [{}, {}, { tensors: /not here any more/ }] },
  })
})

t.test('--outputs that cannot be, or that nothing fits, is said', async t => {
  const without = await runs.bobbin('run', '--host', '--no-loader', '--outputs', '*.pt', '--', 'true')
  t.equal(without.status, 2)
  t.match(without.stderr, /pass --output DIR, too/)
  const run = await recorded('--outputs', '*.safetensors', '--outputs', '*.pt')
  t.match(exitOf(run).problems, ['no output fits --outputs "*.pt"'])
})

t.test('a record that an earlier Bobbin made is sound, and is reproduced (S51)', async t => {
  const old = join(repository, 'test/fixtures/record-2026-11')
  const verified = await runs.bobbin('record', 'verify', old, '--json')
  t.equal(verified.status, 0, verified.stderr)
  t.match(JSON.parse(verified.stdout), { ok: true, outputs: 1 })
  const { status, stdout, stderr } = await runs.bobbin('reproduce', old, ...ALLOW_HOST, '--json')
  t.equal(status, 0, stderr)
  t.match(JSON.parse(stdout), { equal: true, outputs: [{ path: 'model', change: 'same' }], surroundings: [] })
})
