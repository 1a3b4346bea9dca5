UPDATE versions SET files_of = substr(source, 28, 64)
WHERE package = '' AND substr(source, 1, 27) = 'mlflow-artifacts:/packages/'
AND substr(source || '/', 92, 1) = '/' AND substr(source, 28, 64) NOT GLOB '*[^0-9a-f]*';
CREATE INDEX ix_versions_package ON versions (package);
