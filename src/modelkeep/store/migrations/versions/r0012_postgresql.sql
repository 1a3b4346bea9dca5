UPDATE versions SET files_of = substring(source from '^mlflow-artifacts:/packages/([0-9a-f]{64})(?:/|$)')
WHERE package = '' AND source ~ '^mlflow-artifacts:/packages/[0-9a-f]{64}(/|$)';
CREATE INDEX ix_versions_package ON versions (package);
