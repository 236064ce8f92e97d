import type { RunFacts } from '../record/run-facts.js'

/**
 * The three hashes, `QUILT_HASH` being that of the first mount, and one for each mount: `QUILT_HASH_1`, … Once a run is
 * over, packages that it read through its loader alone come behind its mounts.
 */
export function hashVariables({ code, image, mounts, loaded = [], runId }: RunFacts): Record<string, string> {
  const data = [...mounts, ...loaded]
  return {
    BOBBIN_RUN: runId,
    ...(code !== undefined && { GIT_HASH: code.commit, GIT_TREE: code.tree }),
    ...(image !== undefined && { DOCKER_HASH: image.digest }),
    ...(data[0] !== undefined && { QUILT_HASH: data[0].topHash }),
    ...Object.fromEntries(data.map(({ topHash }, i) => [`QUILT_HASH_${i + 1}`, topHash])),
  }
}
