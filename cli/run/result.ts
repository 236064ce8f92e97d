/**
 * Was a run reproduced? Which outputs are its result says `--outputs`: they decide, and the others (logs, times, event files) are
 * listed. Where the hashes of two files of tensors differ, the tensors are compared, and `--tolerance` says what is still equal.
 */
import { join } from 'node:path'
import { BobbinError } from '../../daemon/model/index.js'
import { compilePaths } from '../path-globs.js'
import { compareWithFolder, type OutputDifference, type OutputFile } from '../record/outputs.js'
import { compareTensors, mayHoldTensors, type TensorComparison } from '../tensors/index.js'

export interface ComparedOutput extends OutputDifference {
  /** Whether the run was reproduced depends on it. */
  readonly decides: boolean
  /** Of files whose hashes differ; text: why their tensors were not compared. */
  readonly tensors?: TensorComparison | string
  /** The hashes differ, and the tensors by no more than the tolerance. */
  readonly isWithinTolerance?: boolean
}

const SHOWN_MAX = 10

/** Throws INVALID_ARGUMENT. */
export function parseTolerance(text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const tolerance = Number(text)
  if (text.trim() !== '' && Number.isFinite(tolerance) && tolerance >= 0) return tolerance
  throw new BobbinError('INVALID_ARGUMENT', `--tolerance ${text}: say how far two numbers may be apart, like 1e-6`)
}

/** Tells which outputs decide: all of them where there are no globs. Throws INVALID_ARGUMENT. */
function compileResult(
  globs: readonly string[] | undefined,
  outputs: readonly OutputFile[],
): (path: string) => boolean {
  if (globs === undefined) return () => true
  const paths = new Set(outputs.map(({ path }) => path))
  return compilePaths(globs, path => paths.has(path))
}

/** Globs that no output fits, in words: whoever typed them meant something. */
export function unfitting(globs: readonly string[] | undefined, outputs: readonly OutputFile[]): string[] {
  return (globs ?? [])
    .filter(glob => !outputs.some(({ path }) => compileResult([glob], outputs)(path)))
    .map(glob => `no output fits --outputs ${JSON.stringify(glob)}`)
}

/** Before anything is started: a run whose result is nothing would be reproduced by anything. Throws INVALID_ARGUMENT. */
export function checkResult(globs: readonly string[] | undefined, recorded: readonly OutputFile[]): void {
  const isResult = compileResult(globs, recorded)
  if (globs === undefined || recorded.some(({ path }) => isResult(path))) return
  const names = recorded.slice(0, SHOWN_MAX).map(({ path }) => path)
  const more = recorded.length > names.length ? `, and ${recorded.length - names.length} more` : ''
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `no output of the record matches --outputs ${globs.join(' ')}: it has ${names.join(', ') || 'none'}${more}`,
  )
}

/** `recordedFolder`: where the outputs of the record lie, if they are still there. Throws INTERRUPTED. */
export async function compareResult(
  outputs: readonly OutputDifference[],
  options: {
    readonly globs: readonly string[] | undefined
    readonly recorded: readonly OutputFile[]
    readonly recordedFolder: string | undefined
    /** Where the commands wrote them. */
    readonly recordedDir: string | undefined
    readonly foundDir: string | undefined
    readonly tolerance: number | undefined
    readonly signal: AbortSignal
  },
): Promise<ComparedOutput[]> {
  const isResult = compileResult(options.globs, options.recorded)
  const compared: ComparedOutput[] = []
  for (const output of outputs) {
    const tensors =
      output.change === 'changed' && mayHoldTensors(output.path) ? await tensorsOf(output.path, options) : undefined
    compared.push({
      ...output,
      decides: isResult(output.path),
      ...(tensors !== undefined && { tensors, isWithinTolerance: isWithin(tensors, options.tolerance) }),
    })
  }
  return compared
}

/** The files themselves: the recorded one is read only while it is what the record says. */
async function tensorsOf(
  path: string,
  { recorded, recordedFolder, recordedDir, foundDir, signal }: Parameters<typeof compareResult>[1],
): Promise<TensorComparison | string> {
  const gone = 'the recorded file is not here any more, or has changed'
  if (recordedFolder === undefined || recordedDir === undefined || foundDir === undefined) return gone
  const [was] = await compareWithFolder(
    recorded.filter(one => one.path === path),
    recordedFolder,
    signal,
  )
  if (was?.change !== 'same') return gone
  const before = { path: join(recordedFolder, path), outputDir: recordedDir }
  const now = { path: join(foundDir, path), outputDir: foundDir }
  return compareTensors(before, now, signal)
}

function isWithin(tensors: TensorComparison | string, tolerance: number | undefined): boolean {
  if (typeof tensors === 'string' || tolerance === undefined) return false
  return tensors.largest !== null && tensors.largest <= tolerance
}

export function isReproduced({ change, decides, isWithinTolerance }: ComparedOutput): boolean {
  return !decides || change === 'same' || isWithinTolerance === true
}

/** For people: what differs, what is equal, and then the outputs that do not decide. */
export function linesOf(compared: readonly ComparedOutput[]): string[] {
  const deciding = compared.filter(({ decides }) => decides)
  const others = compared.filter(({ decides }) => !decides)
  const differing = deciding.filter(({ change }) => change !== 'same')
  const equal = deciding.filter(({ change }) => change === 'same')
  const lineOf = ({ path, change, isWithinTolerance }: ComparedOutput) =>
    `  ${change}${isWithinTolerance ? ', within the tolerance' : ''}  ${path}`
  return [
    ...differing.flatMap(output => [lineOf(output), ...tensorLines(output)]),
    ...shortened(equal.map(lineOf)),
    ...(others.length === 0 ? [] : ['not part of the result (--outputs):', ...shortened(others.map(lineOf))]),
  ]
}

export function shortened(lines: readonly string[]): string[] {
  const shown = lines.slice(0, SHOWN_MAX)
  return lines.length > shown.length ? [...shown, `  and ${lines.length - shown.length} more`] : shown
}

function tensorLines({ tensors }: ComparedOutput): string[] {
  if (tensors === undefined) return []
  if (typeof tensors === 'string') return [`    not compared by tensor: ${tensors}`]
  const { names, equal, largest, differences } = tensors
  const rows = differences.map(({ name, change, recorded, found, largest }) => {
    const what = change === 'changed' && recorded !== found ? `${recorded}, now ${found}` : (recorded ?? found)
    const apart = change === 'changed' ? `, ${largest === null ? 'no distance' : `up to ${largest} apart`}` : ''
    return `    ${change}  ${name}: ${what}${apart}`
  })
  const most = largest === null ? 'not all by a number' : `by at most ${largest}`
  const sum = equal === names ? 'all are equal' : `${names - equal} differ, ${most}`
  return [`    ${tensors.format}, ${names} tensors and values: ${sum}`, ...shortened(rows)]
}
