/**
 * What servers that are only like S3 may lack, and what a writer does without then.
 *
 * A lack shows as a refusal (501, or 400 with a code that says no more) of a request that would be taken without it. It is noticed once per
 * writer and bucket, remembered, and told. What is weaker then, SEMANTICS.md says (S109).
 */
import { failureClass, httpStatus, s3Code } from '../source/failure-class.js'

export type Ability = 'checksums' | 'conditions'

const told: Readonly<Record<Ability, string>> = {
  checksums:
    'the server takes no checksums (SHA-256): it is sent MD5 instead, and objects that are there already are read or written again',
  conditions:
    'the server cannot write conditionally: of two who push to one name in the same moment, both may be told that they won',
}

/** 400 says that a request is wrong, and these do not say that its bytes or its name are. */
const VAGUE_CODES = [
  'BadRequest',
  'HTTP 400',
  'InvalidArgument',
  'InvalidHeader',
  'InvalidRequest',
  'NotImplemented',
  'NotSupported',
]

function mayBeALack(error: unknown): boolean {
  const status = httpStatus(error)
  return status === 501 || (status === 400 && VAGUE_CODES.includes(s3Code(error)))
}

export class Abilities {
  readonly #lacking = new Map<string, ReadonlySet<Ability>>()

  constructor(private readonly tell: (what: string) => void) {}

  /**
   * Sends a request that uses some abilities of a bucket's server, without those that it is known to lack. Throws what the request throws; for one
   * that is refused in every way, what it threw at first.
   */
  async send<T>(
    bucket: string,
    uses: readonly Ability[],
    request: (has: (ability: Ability) => boolean) => Promise<T>,
  ): Promise<T> {
    const known = this.#lacking.get(bucket) ?? new Set()
    let first: unknown
    for (const more of subsets(uses.filter(ability => !known.has(ability)))) {
      const without = new Set([...known, ...more])
      try {
        const answer = await request(ability => !without.has(ability))
        this.#learn(bucket, more)
        return answer
      } catch (error) {
        if (!mayBeALack(error)) {
          // It was understood, and refused for another reason, such as 412.
          if (httpStatus(error) !== undefined && failureClass(error) === 'final') this.#learn(bucket, more)
          throw error
        }
        first ??= error
      }
    }
    throw first
  }

  #learn(bucket: string, lacking: readonly Ability[]): void {
    const known = this.#lacking.get(bucket) ?? new Set()
    for (const ability of lacking) if (!known.has(ability)) this.tell(told[ability])
    this.#lacking.set(bucket, new Set([...known, ...lacking]))
  }
}

/** Few first: what the server has is used. */
function subsets(abilities: readonly Ability[]): (readonly Ability[])[] {
  return [[], ...abilities.map(ability => [ability]), ...(abilities.length > 1 ? [abilities] : [])]
}
