import type { RunFacts } from '../record/run-facts.js'

/** The three hashes, and one for each mount after the first: `QUILT_HASH_2`, … */
export function hashVariables({ code, image, mounts, runId }: RunFacts): Record<string, string> {
  return {
    BOBBIN_RUN: runId,
    ...(code !== undefined && { GIT_HASH: code.commit, GIT_TREE: code.tree }),
    ...(image !== undefined && { DOCKER_HASH: image.digest }),
    ...(mounts[0] !== undefined && { QUILT_HASH: mounts[0].topHash }),
    ...Object.fromEntries(mounts.map(({ topHash }, i) => [`QUILT_HASH_${i + 1}`, topHash])),
  }
}
