ALTER TABLE versions ADD COLUMN files_of TEXT DEFAULT '' NOT NULL;
UPDATE versions SET files_of = coalesce(
    substring(source from '^mlflow-artifacts:.*?/([^/]+)/artifacts(?:/|$)'),
    substring(source from '^runs:/([^/]+)'),
    substring(source from '^models:/(m-[^/]+)'),
    ''
);
UPDATE versions SET files_of = coalesce((
    SELECT r.run_id FROM runs r
    WHERE r.artifact_uri <> '' AND starts_with(source || '/', r.artifact_uri || '/') LIMIT 1
), files_of)
WHERE starts_with(source, 'mlflow-artifacts:') AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.run_id = files_of)
AND NOT EXISTS (SELECT 1 FROM logged_models WHERE model_id = files_of);
CREATE INDEX ix_versions_files_of ON versions (files_of);
