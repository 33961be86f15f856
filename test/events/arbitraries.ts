import fc from 'fast-check'

fc.configureGlobal({ includeErrorInReport: true })

export const segment = fc.constantFrom('a', 'b', 'c')
export const topic = fc.array(segment, { minLength: 1, maxLength: 5 }).map(segments => segments.join(':'))

export const pattern = fc.tuple(fc.array(fc.oneof(segment, fc.constant('*')), { maxLength: 4 }), fc.boolean())
  .map(([segments, rest]) => [...segments, ...(rest || segments.length === 0 ? ['**'] : [])].join(':'))
