import type { Frame } from '../delivery/frame.js'
import type { Target } from '../events/target.js'
import { inNoContext } from '../util/async-context.js'
import type { MemoryBudget } from '../util/memory-budget.js'

/** The frames that are being written in pieces, kept to check them when rights change. The budget counts them beside the pieces. */
export class Unfinished {
  readonly #frames: readonly Frame[]
  readonly #budget: MemoryBudget

  constructor (frames: readonly Frame[], budget: MemoryBudget) {
    this.#frames = frames
    this.#budget = budget
    for (const frame of frames) budget.hold(frame)
  }

  /** Returns whether all of them may be received. */
  isFor (isTarget: (target: Target) => boolean): boolean {
    return inNoContext(() => this.#frames.every(({ target }) => target === null || isTarget(target)))
  }

  release (): void {
    for (const frame of this.#frames) this.#budget.release(frame)
  }
}
