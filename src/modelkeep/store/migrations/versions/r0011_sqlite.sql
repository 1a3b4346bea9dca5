ALTER TABLE versions ADD COLUMN files_of TEXT DEFAULT '' NOT NULL;
UPDATE versions SET files_of = substr(root, length(rtrim(root, replace(root, '/', ''))) + 1)
FROM (
    SELECT model AS m, version AS v, substr(source, 1, instr(source || '/', '/artifacts/') - 1) AS root
    FROM versions WHERE source LIKE 'mlflow-artifacts:%' AND source || '/' LIKE '%/artifacts/%'
) WHERE model = m AND version = v;
UPDATE versions SET files_of = substr(source, 7, instr(substr(source, 7) || '/', '/') - 1)
WHERE source LIKE 'runs:/%';
UPDATE versions SET files_of = substr(source, 9, instr(substr(source, 9) || '/', '/') - 1)
WHERE source LIKE 'models:/m-%';
UPDATE versions SET files_of = coalesce((
    SELECT run_id FROM runs
    WHERE artifact_uri <> '' AND substr(source || '/', 1, length(artifact_uri) + 1) = artifact_uri || '/' LIMIT 1
), files_of)
WHERE source LIKE 'mlflow-artifacts:%' AND NOT EXISTS (SELECT 1 FROM runs WHERE run_id = files_of)
AND NOT EXISTS (SELECT 1 FROM logged_models WHERE model_id = files_of);
CREATE INDEX ix_versions_files_of ON versions (files_of);
