"""The table of `ksmwalk.h`, which says what each function does."""

#: PyCapsule named "ksmwalk.embedding._capsule.api": a `kw_api *`
api: object
