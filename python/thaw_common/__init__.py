"""Files of snapshots, and what all engines' sides of them have in common.

`format` reads and writes containers, `snapshot` the parameters of a torch module, `cloud` brings
files from S3 and puts them there, `util` names shards, `telemetry` holds the switches of the
environment. Importing it needs neither torch nor boto3.
"""
