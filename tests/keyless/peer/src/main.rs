//! Prints the bundle that sigstore-sign makes of an in-toto statement: the peer of what the controller signs.

use std::{env, error::Error, fs};

use sigstore_sign::{SigningContext, SigningServices, oidc::IdentityToken, trust_root::SigningConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [config, token, statement] = arguments.as_slice() else {
        return Err("name three files: a signing configuration, a token and a statement".into());
    };
    let config = SigningConfig::from_json(&fs::read_to_string(config)?)?;
    let token = IdentityToken::from_jwt(fs::read_to_string(token)?.trim())?;
    let signer = SigningContext::new(SigningServices::from_signing_config(&config)?).signer(token);
    let bundle = signer.sign_raw_statement(&fs::read(statement)?).await?;
    print!("{}", bundle.to_json()?);
    Ok(())
}
