/** Files of tensors as NumPy, torch and safetensors write them: what is compared is what those libraries see. */
import t, { type Test } from 'tap'
import { compareTensors, type TensorComparison } from '../../cli/tensors/index.js'
import { AS_USERS_DO, runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { part, repository } from '../support/parts.js'

t.setTimeout(300_000)

interface Pair {
  readonly recorded: string
  readonly found: string
  /** -1: as many as there are. */
  readonly names?: number
  /** null: there is no distance. */
  readonly differences?: Readonly<Record<string, number | null>>
  /** What it says instead. */
  readonly refused?: string
}

t.test('files of real libraries differ by what those libraries say (S122)', async t => {
  const folder = testFolder(t)
  const [command, ...before] = AS_USERS_DO
  const script = `${repository}/test/clients/tensor_files.py`
  const args = [...before, part('loader'), '-B', script, JSON.stringify({ folder })]
  const { status, stdout, stderr } = await runProgram(command!, args)
  t.equal(status, 0, stderr)
  const pairs = stdout
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line) as Pair)
  t.ok(pairs.length >= 13)
  for (const { recorded, found, names, differences, refused } of pairs) {
    const name = found.slice(folder.length + 1)
    const compared = await compareTensors(
      { path: recorded, outputDir: '/one/out' },
      { path: found, outputDir: '/another/out' },
      undefined,
    )
    if (refused) {
      t.match(compared, new RegExp(refused), name)
      continue
    }
    if (typeof compared === 'string') {
      t.fail(`${name}: ${compared}`)
      continue
    }
    checkDifferences(t, name, compared, differences!)
    if (names !== -1) t.equal(compared.names, names, name)
    t.equal(compared.equal, compared.names - Object.keys(differences!).length, name)
  }
})

function checkDifferences(
  t: Test,
  name: string,
  { differences }: TensorComparison,
  expected: Readonly<Record<string, number | null>>,
): void {
  t.same(differences.map(one => one.name).sort(), Object.keys(expected).sort(), name)
  for (const { name: tensor, largest } of differences) {
    const distance = expected[tensor]
    const isSame = largest === null || distance === null ? largest === distance : Math.abs(largest - distance!) < 1e-9
    t.ok(isSame, `${name}: ${tensor} is ${largest} apart, and should be ${distance}`)
  }
}
