"""The frame store: pixels on disk, one file a frame, and the ledger that says which of them stand.

Where to look: `store` (FrameStore), `spec` (what a store holds), `writer` (commit), `ledger` and `records` (what is recorded),
`owner` and `claims` (who may write), `fingerprint` and `resume` (what differs from a job), `relocate` (a flight that changed),
`verify` and `inventory` (damage found), `pixels` (floats to the store's dtypes), `durable` and `staging` (bytes that outlive a power cut).
Importing this package imports none of them: zarr is only loaded by those who open a store.
"""
