/** Where a command prints. */
export interface Terminal {
  /** Prints results. Resolves when more can be written. */
  out (text: string): void | Promise<void>
  /** Prints what is not a result, such as progress. */
  err (text: string): void
  /** Aborts on Ctrl-C. */
  readonly signal: AbortSignal
}
