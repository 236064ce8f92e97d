declare const brand: unique symbol

/** A string that passed the parser of `Name`; only that parser casts to it. */
export type Brand<T, Name extends string> = T & { readonly [brand]: Name }
