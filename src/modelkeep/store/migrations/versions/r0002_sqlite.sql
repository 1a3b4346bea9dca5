ALTER TABLE versions ADD COLUMN model_id TEXT DEFAULT '' NOT NULL;
CREATE TABLE datasets (
	id INTEGER NOT NULL,
	experiment INTEGER NOT NULL,
	name TEXT NOT NULL,
	digest TEXT NOT NULL,
	source_type TEXT DEFAULT '' NOT NULL,
	source TEXT DEFAULT '' NOT NULL,
	schema TEXT DEFAULT '' NOT NULL,
	profile TEXT DEFAULT '' NOT NULL,
	CONSTRAINT pk_datasets PRIMARY KEY (id),
	CONSTRAINT uq_datasets_experiment_name_digest UNIQUE (experiment, name, digest),
	CONSTRAINT fk_datasets_experiment FOREIGN KEY(experiment) REFERENCES experiments (id) ON DELETE CASCADE
);
CREATE TABLE logged_models (
	id INTEGER NOT NULL,
	model_id TEXT NOT NULL,
	experiment INTEGER NOT NULL,
	name TEXT NOT NULL,
	model_type TEXT DEFAULT '' NOT NULL,
	source_run_id TEXT DEFAULT '' NOT NULL,
	status TEXT DEFAULT 'LOGGED_MODEL_PENDING' NOT NULL,
	status_message TEXT DEFAULT '' NOT NULL,
	artifact_uri TEXT DEFAULT '' NOT NULL,
	lifecycle_stage TEXT DEFAULT 'active' NOT NULL,
	created_ms BIGINT NOT NULL,
	updated_ms BIGINT NOT NULL,
	CONSTRAINT pk_logged_models PRIMARY KEY (id),
	CONSTRAINT uq_logged_models_model_id UNIQUE (model_id),
	CONSTRAINT fk_logged_models_experiment FOREIGN KEY(experiment) REFERENCES experiments (id) ON DELETE CASCADE
);
CREATE INDEX ix_logged_models_recent ON logged_models (experiment, created_ms, model_id);
CREATE TABLE logged_model_artifacts (
	model INTEGER NOT NULL,
	path TEXT NOT NULL,
	digest TEXT NOT NULL,
	size BIGINT NOT NULL,
	CONSTRAINT pk_logged_model_artifacts PRIMARY KEY (model, path),
	CONSTRAINT fk_logged_model_artifacts_model FOREIGN KEY(model) REFERENCES logged_models (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE logged_model_metrics (
	model INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	run_id TEXT NOT NULL,
	dataset_name TEXT DEFAULT '' NOT NULL,
	dataset_digest TEXT DEFAULT '' NOT NULL,
	timestamp_ms BIGINT NOT NULL,
	step BIGINT NOT NULL,
	value DOUBLE NOT NULL,
	is_nan SMALLINT DEFAULT '0' NOT NULL,
	CONSTRAINT pk_logged_model_metrics PRIMARY KEY (model, "key", run_id, dataset_name, dataset_digest, timestamp_ms, step, value, is_nan),
	CONSTRAINT fk_logged_model_metrics_model FOREIGN KEY(model) REFERENCES logged_models (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE logged_model_params (
	model INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_logged_model_params PRIMARY KEY (model, "key"),
	CONSTRAINT fk_logged_model_params_model FOREIGN KEY(model) REFERENCES logged_models (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE logged_model_tags (
	model INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_logged_model_tags PRIMARY KEY (model, "key"),
	CONSTRAINT fk_logged_model_tags_model FOREIGN KEY(model) REFERENCES logged_models (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE run_datasets (
	run INTEGER NOT NULL,
	dataset INTEGER NOT NULL,
	context TEXT DEFAULT '' NOT NULL,
	tags TEXT DEFAULT '{}' NOT NULL,
	CONSTRAINT pk_run_datasets PRIMARY KEY (run, dataset),
	CONSTRAINT fk_run_datasets_run FOREIGN KEY(run) REFERENCES runs (id) ON DELETE CASCADE,
	CONSTRAINT fk_run_datasets_dataset FOREIGN KEY(dataset) REFERENCES datasets (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE INDEX ix_run_datasets_dataset ON run_datasets (dataset);
CREATE TABLE run_models (
	run INTEGER NOT NULL,
	kind TEXT NOT NULL,
	model_id TEXT NOT NULL,
	step BIGINT DEFAULT '0' NOT NULL,
	CONSTRAINT pk_run_models PRIMARY KEY (run, kind, model_id),
	CONSTRAINT fk_run_models_run FOREIGN KEY(run) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
