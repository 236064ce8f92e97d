import { standardJson } from '../daemon/json/python-json.js'

/**
 * A JSON object with members that are JSON text already. Metadata is printed as the manifest has it:
 * parsing would turn 1.0 into 1, and 9007199254740993 into 9007199254740992. Numbers that are not finite become strings.
 */
export function jsonWith(members: Readonly<Record<string, unknown>>, raw: Readonly<Record<string, string>>): string {
  const plain = Object.entries(members).map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`)
  const given = Object.entries(raw).map(([key, text]) => `${JSON.stringify(key)}:${standardJson(text)}`)
  return `{${[...plain, ...given].join(',')}}`
}
