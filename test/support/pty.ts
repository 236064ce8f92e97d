/** A program on a terminal of its own (script(1)), and what came out there. */
import { runProgram } from './cli.js'

/** What cli-progress draws its bars with: the cursor hidden and shown, moved, and lines cleared. These are ours. */
const BARS = /\x1b\[\?(?:25|7)[hl]|\x1b\[\d*[A-DGK]|\x1b\[0?J/g

/** stdout and stderr as a terminal gets them, less what progress bars draw; its line ends are `\n`. */
export async function onTerminal(line: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
  const quoted = line.map(word => `'${word.replaceAll("'", `'\\''`)}'`).join(' ')
  const { stdout } = await runProgram('script', ['--quiet', '--return', '--command', quoted, '/dev/null'], { env })
  return stdout.replace(BARS, '').replaceAll('\r\n', '\n')
}

/** Characters that a terminal would obey, or that make a line read otherwise; none but line ends. */
export function controlsIn(text: string): string[] {
  return [...text.matchAll(/[^\P{Cc}\n]|[\p{Bidi_Control}\u2028\u2029]/gu)].map(([found]) => JSON.stringify(found))
}
