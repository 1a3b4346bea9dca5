CREATE INDEX ix_versions_stage ON versions (model, stage, version);
CREATE INDEX ix_versions_updated ON versions (updated_ms);
